"""The files of an adapter folder: names, hash, copy. No torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from autopeft.errors import UserError

CONFIG, WEIGHTS, OURS, CARD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "autopeft.json",
    "README.md",
)
INIT = "init"  # folder inside an adapter's: the adapter that its backbone has folded in


def adapter_hash(folder: Path) -> str:
    """sha256 over the files that ``load_adapter`` reads, those of a folded adapter included.

    Raises:
        UserError: no adapter folder.
    """
    digest = hashlib.sha256()
    for name in (OURS, WEIGHTS):
        try:
            with (folder / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError:
            raise _no_adapter(folder, name) from None
    if (folder / INIT).is_dir():
        digest.update(adapter_hash(folder / INIT).encode())
    return digest.hexdigest()


def copy_adapter(folder: Path, target: Path, sha256: str) -> None:
    """Copies the files of an adapter folder, and nothing else that lies there.

    Raises:
        UserError: it has changed since its hash was taken.
    """
    _copy_files(folder, target)
    if adapter_hash(target) != sha256:
        raise UserError("changed while it was used", str(folder), "Put it back as it was.")


def _copy_files(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS, OURS, CARD):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    if (folder / INIT).is_dir():
        _copy_files(folder / INIT, target / INIT)


def write_json(path: Path, value: Any) -> None:
    """Writes one of the folder's JSON files; the folder is a temporary one."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads one of the folder's JSON files.

    Raises:
        UserError: no adapter folder, or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except OSError:
        raise _no_adapter(path.parent, path.name) from None
    except ValueError as error:
        raise UserError(f"is damaged ({error})", str(path)) from None
    if not isinstance(value, dict):
        raise UserError("is damaged (no mapping)", str(path))
    return value


def _no_adapter(folder: Path, name: str) -> UserError:
    what = f"is no adapter folder: it has no {name}"
    return UserError(what, str(folder), "Name a folder such as runs/NAME/best.")
