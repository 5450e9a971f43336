"""The user's own key, outside of all runs: hashes of patient ids made with it cannot be guessed.

A plain hash of an id is no secret: whoever knows how ids are written tries them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

_BYTES = 32


@dataclass(frozen=True)
class Key:
    """A key for hashes.

    Attributes:
        value: the key itself; never written into a run.
        note: why hashes made with it will not be recognized later; empty where they will.
    """

    value: bytes
    note: str = ""

    @property
    def name(self) -> str:
        """Eight hex digits that tell keys apart and do not give this one away."""
        return hashlib.sha256(b"autopeft key " + self.value).hexdigest()[:8]

    def mark(self, *words: str) -> bytes:
        """Six bytes that stand for some words (HMAC-SHA-256, cut off)."""
        return hmac.digest(self.value, "\0".join(words).encode(), "sha256")[:6]


def file() -> Path:
    """``$XDG_CONFIG_HOME/autopeft/key``, by default below ``~/.config``."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(home) if Path(home).is_absolute() else Path("~/.config").expanduser()
    return root / "autopeft" / "key"


def key() -> Key:
    """The user's key, made at the first use (mode 0600).

    A folder that cannot be written to gives a key for this time only, and a note that says so: the
    end of a long run is no place to fail for it.
    """
    where = ""
    try:
        path = file()
        where = f" in {path}"
        if not path.exists():
            _make(path)
        value = bytes.fromhex(path.read_text().strip())
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
        why = getattr(error, "strerror", None) or error
        return Key(secrets.token_bytes(_BYTES), f"no key can be kept{where} ({why})")
    except ValueError:
        value = b""
    if len(value) != _BYTES:
        return Key(secrets.token_bytes(_BYTES), f"{path} holds no key; remove it for a new one")
    return Key(value)


def _make(path: Path) -> None:
    """A new key under its name, unless another process was faster."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # for its owner only
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
