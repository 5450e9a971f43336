"""Images are decoded once into one uint8 memory map that all workers share."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from autopeft.errors import UserError
from autopeft.files import inside, lock, reserve, write_bytes, write_json, write_text

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]
_DEEP = ("I;16", "I;16B", "I;16L", "I")
_GRAY = ("1", "L", "LA", *_DEEP)
_CHUNK = 256


@dataclass(frozen=True)
class Rule:
    """How pixels become bytes: one rule for all files of a store.

    Attributes:
        channels: 1 where every file is gray, else 3.
        white: value that becomes 255 in 16-bit gray files: 255, 4095 or 65535, the least that
            holds the brightest pixel of all of them; 0 = there are none.
    """

    channels: int = 1
    white: int = 0

    def widened(self, other: Rule) -> Rule:
        """The least rule that serves both."""
        return Rule(max(self.channels, other.channels), max(self.white, other.white))


def decode(path: Path, size: int, fit: str = "pad", rule: Rule | None = None) -> Bytes:
    """Reads one image as a square.

    Gray stays one channel; transparency is laid on black; EXIF orientation is applied. 16-bit
    gray is scaled by the data set's nominal range (``Rule.white``), never by an image's own
    maximum: one bright marker would change the whole picture.

    Args:
        path: the image file.
        size: side of the square in pixels.
        fit: ``pad`` (keep all, black borders), ``crop`` (center) or ``squash``.
        rule: the rule of the images that this one belongs to; without one, or without its
            ``white``, the file alone decides.

    Returns:
        uint8 [size, size, channels].

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    image = _read(path)
    own = _rule_of(image)
    return _square(image, size, fit, Rule(rule.channels, rule.white or own.white) if rule else own)


def _read(path: Path) -> Image.Image:
    """The loaded image, upright."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
            return image
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # broken bytes lead Pillow's readers to almost any exception
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _rule_of(image: Image.Image) -> Rule:
    """What one image calls for."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no nominal white")
    white = 0
    if image.mode in _DEEP:
        top = np.asarray(image).max()
        white = 255 if top < 256 else 4095 if top < 4096 else 65535
    return Rule(1 if image.mode in _GRAY else 3, white)


def _square(image: Image.Image, size: int, fit: str, rule: Rule) -> Bytes:
    image = _eight_bit(image, rule.white).convert("L" if rule.channels == 1 else "RGB")
    resample = Image.Resampling.BICUBIC
    if fit == "pad":
        image = ImageOps.pad(image, (size, size), resample, color=0)
    elif fit == "crop":
        image = ImageOps.fit(image, (size, size), resample)
    else:
        image = image.resize((size, size), resample)
    return np.asarray(image, np.uint8).reshape(size, size, -1)


def _eight_bit(image: Image.Image, white: int) -> Image.Image:
    """An ``L`` or ``RGB`` image, whatever the file held."""
    if image.mode in _DEEP:
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray((values.clip(0, white) / white * 255).round().astype(np.uint8))
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        color = image.convert("RGBA")
        black = Image.new("RGBA", color.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, color).convert("RGB")
    return image


@dataclass(frozen=True)
class ImageStore:
    """Decoded images of a task.

    Attributes:
        folder: where ``images.npy`` and ``store.json`` lie.
        array: uint8 [N, size, size, C], memory-mapped read-only; C is 1 or 3.
        rule: how the files became bytes; new images of the same kind take the same rule.
    """

    folder: Path
    array: Bytes
    rule: Rule

    def batch(self, index: npt.NDArray[np.int64]) -> Bytes:
        """A copy of some rows: uint8 [B, size, size, C]."""
        return np.array(self.array[index])


def digest(store: ImageStore) -> str:
    """Hash of all pixels [16 hex digits], computed once for each store."""
    file = store.folder / "pixels.sha256"
    if not file.exists():
        h = hashlib.sha256(repr(store.array.shape).encode())
        for start in range(0, len(store.array), _CHUNK):
            h.update(store.array[start : start + _CHUNK].tobytes())
        write_text(file, h.hexdigest()[:16])
    return file.read_text()


def marks(store: ImageStore) -> npt.NDArray[np.uint64]:
    """A hash of each image's pixels [N]: equal images have equal ones."""
    file = store.folder / "rows.npy"
    if not file.exists():
        found = [
            hashlib.blake2b(row.tobytes(), digest_size=8).digest()
            for start in range(0, len(store.array), _CHUNK)
            for row in store.array[start : start + _CHUNK]
        ]
        stream = io.BytesIO()
        np.save(stream, np.frombuffer(b"".join(found), np.uint64))
        write_bytes(file, stream.getvalue())
    return np.load(file)  # type: ignore[no-any-return]


def open_store(folder: str | Path) -> ImageStore:
    """Maps a finished store."""
    folder = Path(folder)
    rule = Rule(**json.loads((folder / "store.json").read_text()))
    return ImageStore(folder, np.load(folder / "images.npy", mmap_mode="r"), rule)


def build_store(
    root: Path,
    paths: Sequence[str],
    size: int,
    fit: str,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = 2,
    fixed: Rule | None = None,
) -> ImageStore:
    """Decodes what is not decoded yet; a killed build goes on where it stopped.

    Args:
        root: folder of the images.
        paths: paths below ``root``; row i of the store is ``paths[i]``.
        size: side in pixels.
        fit: see ``decode``.
        cache: folder of all stores; the store's name is a hash of paths, file sizes, times of
            change, size, fit: a replaced image makes a new store.
        progress: called with (images done, images in all).
        threads: decoding threads (Pillow releases the interpreter lock).
        fixed: the rule of the images that a model was trained on, which these have to follow:
            its channels, and its white where it has one. None = these files decide.

    Raises:
        UserError: names and counts the files that cannot be read; nothing is kept then.
    """
    files = _existing(root, paths)
    folder = cache / f"images-{_key(files, paths, size, fit, fixed)}"
    if (folder / "store.json").exists():
        return open_store(folder)
    locked = cache / f"{folder.name}.lock"
    with lock(locked, wait=True):
        if not (folder / "store.json").exists():
            rule, bad = _fill_all(folder, files, size, fit, progress, threads, fixed)
            if bad:
                shutil.rmtree(folder)
                locked.unlink()
                raise _unreadable([str(paths[i]) for i in bad], root)
            write_json(folder / "store.json", asdict(rule))
    return open_store(folder)


def is_built(root: Path, paths: Sequence[str], size: int, fit: str, cache: Path) -> bool:
    """Whether ``build_store`` would find everything decoded; its arguments.

    Raises:
        UserError: names and counts the files that are missing.
    """
    key = _key(_existing(root, paths), paths, size, fit, None)
    return (cache / f"images-{key}" / "store.json").exists()


def _existing(root: Path, paths: Sequence[str]) -> list[Path]:
    """The files of some paths, all of which are there."""
    files = [inside(root, str(p)) for p in paths]
    missing = [str(p) for p, file in zip(paths, files, strict=True) if not file.is_file()]
    if missing:
        raise _unreadable(missing, root)
    return files


def _key(
    files: Sequence[Path], paths: Sequence[str], size: int, fit: str, fixed: Rule | None
) -> str:
    h = hashlib.sha256(json.dumps([size, fit, *([asdict(fixed)] if fixed else [])]).encode())
    for file, path in zip(files, paths, strict=True):
        stat = file.stat()
        h.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return h.hexdigest()[:16]


def _unreadable(bad: Sequence[str], root: Path) -> UserError:
    shown = ", ".join(bad[:5]) + (" ..." if len(bad) > 5 else "")
    return UserError(
        f"{len(bad)} {'image' if len(bad) == 1 else 'images'} cannot be read: {shown}",
        str(root),
        "Repair the files or take their rows out of the table.",
    )


def _fill_all(
    folder: Path,
    files: Sequence[Path],
    size: int,
    fit: str,
    progress: Callable[[int, int], None],
    threads: int,
    fixed: Rule | None,
) -> tuple[Rule, list[int]]:
    """Decodes every file; one that calls for a wider rule starts the store over under that rule.

    Returns:
        The rule, and the rows that cannot be read.
    """
    rule = _saved_rule(folder) or fixed or Rule()
    while True:
        wider, bad = _fill(folder, files, size, fit, rule, progress, threads, fixed)
        if wider == rule:
            return rule, bad
        rule = wider


def _fill(
    folder: Path,
    files: Sequence[Path],
    size: int,
    fit: str,
    rule: Rule,
    progress: Callable[[int, int], None],
    threads: int,
    fixed: Rule | None,
) -> tuple[Rule, list[int]]:
    """Decodes the missing rows under one rule, or up to a file that calls for a wider one."""
    array, filled = _open_maps(folder, rule, (len(files), size, size, rule.channels))

    def one(i: int) -> Rule | None:
        try:
            image = _read(files[i])
            wider = _held(rule.widened(_rule_of(image)), fixed)
            if wider == rule:
                array[i] = _square(image, size, fit, rule)
            return wider
        except (OSError, ValueError):
            return None

    todo, bad = np.flatnonzero(filled == 0), list[int]()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(todo), _CHUNK):
            rows = todo[start : start + _CHUNK].tolist()
            needs = list(pool.map(one, rows))
            wider = functools.reduce(Rule.widened, [n for n in needs if n], rule)
            if wider != rule:
                return wider, []
            array.flush()  # pixels reach the disk before the mark that says so
            filled[[i for i, need in zip(rows, needs, strict=True) if need]] = 1
            bad += [i for i, need in zip(rows, needs, strict=True) if not need]
            progress(len(files) - len(todo) + start + len(rows), len(files))
    return rule, bad


def _held(rule: Rule, fixed: Rule | None) -> Rule:
    """The rule as far as it is free."""
    return rule if fixed is None else Rule(fixed.channels, fixed.white or rule.white)


def _saved_rule(folder: Path) -> Rule | None:
    """The rule of an unfinished store."""
    file = folder / "rule.json"
    return Rule(**json.loads(file.read_text())) if file.exists() else None


def _open_maps(folder: Path, rule: Rule, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Pixels and marks of an unfinished store; made anew unless they follow this rule."""
    names = folder / "images.npy", folder / "filled.npy"
    if _saved_rule(folder) == rule:
        return tuple(np.lib.format.open_memmap(n, mode="r+") for n in names)  # type: ignore
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    maps = tuple(
        np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=s)
        for name, s in zip(names, (shape, shape[:1]), strict=True)
    )
    for name in names:
        reserve(name)
    write_json(folder / "rule.json", asdict(rule))  # last: it says that the maps are whole
    return maps  # type: ignore[return-value]


def normalize(batch: Bytes, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [B, H, W, C in {1, 3}] -> float32 [B, 3, H, W], (x / 255 - mean) / std."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float().div_(255)
    shape = (1, 3, 1, 1)
    m, s = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
    return (x.expand(-1, 3, -1, -1) - m) / s
