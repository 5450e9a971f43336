"""Images are decoded once into one uint8 memory map that all workers share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from autopeft.errors import UserError
from autopeft.files import inside, lock, write_json

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]
_GRAY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")
_CHUNK = 256


def decode(path: Path, size: int, fit: str = "pad", channels: int = 0) -> Bytes:
    """Reads one image as a square.

    Gray stays one channel; 16-bit gray is scaled by its nominal range, never by its own maximum
    (a bright marker would change the whole picture); transparency is laid on black; EXIF
    orientation is applied.

    Args:
        path: the image file.
        size: side of the square in pixels.
        fit: ``pad`` (keep all, black borders), ``crop`` (center) or ``squash``.
        channels: 1 or 3; 0 = as the file has it.

    Returns:
        uint8 [size, size, channels].

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    with Image.open(path) as opened:
        image = _eight_bit(ImageOps.exif_transpose(opened))
    image = image.convert("L" if (channels or (1 if image.mode == "L" else 3)) == 1 else "RGB")
    resample = Image.Resampling.BICUBIC
    if fit == "pad":
        image = ImageOps.pad(image, (size, size), resample, color=0)
    elif fit == "crop":
        image = ImageOps.fit(image, (size, size), resample)
    else:
        image = image.resize((size, size), resample)
    return np.asarray(image, np.uint8).reshape(size, size, -1)


def _eight_bit(image: Image.Image) -> Image.Image:
    """An ``L`` or ``RGB`` image, whatever the file held."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image).astype(np.float32)
        top = 255.0 if values.max() < 256 else 4095.0 if values.max() < 4096 else 65535.0
        return Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        color = image.convert("RGBA")
        black = Image.new("RGBA", color.size, (0, 0, 0, 255))
        flat = Image.alpha_composite(black, color).convert("RGB")
        return flat.convert("L") if image.mode == "LA" else flat
    return image.convert("L") if image.mode in _GRAY else image.convert("RGB")


@dataclass(frozen=True)
class ImageStore:
    """Decoded images of a task.

    Attributes:
        folder: where ``images.npy`` and ``store.json`` lie.
        array: uint8 [N, size, size, C], memory-mapped read-only; C is 1 or 3.
    """

    folder: Path
    array: Bytes

    def batch(self, index: npt.NDArray[np.int64]) -> Bytes:
        """A copy of some rows: uint8 [B, size, size, C]."""
        return np.array(self.array[index])


def open_store(folder: str | Path) -> ImageStore:
    """Maps a finished store."""
    folder = Path(folder)
    return ImageStore(folder, np.load(folder / "images.npy", mmap_mode="r"))


def build_store(
    root: Path,
    paths: Sequence[str],
    size: int,
    fit: str,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = 2,
) -> ImageStore:
    """Decodes what is not decoded yet; a killed build goes on where it stopped.

    Args:
        root: folder of the images.
        paths: paths below ``root``; row i of the store is ``paths[i]``.
        size: side in pixels.
        fit: see ``decode``.
        cache: folder of all stores; the store's name is a hash of paths, file sizes, size, fit.
        progress: called with (images done, images in all).
        threads: decoding threads (Pillow releases the interpreter lock).

    Raises:
        UserError: names and counts the files that cannot be read; nothing is kept then.
    """
    files = [inside(root, str(p)) for p in paths]
    folder = cache / f"images-{_key(files, paths, size, fit)}"
    if (folder / "store.json").exists():
        return open_store(folder)
    channels = 1 if all(_is_gray(f) for f in files[:64]) else 3
    with lock(cache / f"{folder.name}.lock"):
        if not (folder / "store.json").exists():
            bad = _fill(folder, files, size, fit, channels, progress, threads)
            if bad and channels == 1 and bad == ["color"]:
                _remove(folder)
                bad = _fill(folder, files, size, fit, 3, progress, threads)
            if bad:
                _remove(folder)
                _refuse(bad, root)
            write_json(folder / "store.json", {"images": len(files), "size": size, "fit": fit})
    return open_store(folder)


def _key(files: Sequence[Path], paths: Sequence[str], size: int, fit: str) -> str:
    """Hash over names and byte counts: a replaced image makes a new store."""
    h = hashlib.sha256(json.dumps([size, fit]).encode())
    for file, path in zip(files, paths, strict=True):
        try:
            h.update(f"{path}\0{file.stat().st_size}\0".encode())
        except OSError:
            h.update(f"{path}\0missing\0".encode())
    return h.hexdigest()[:16]


def _is_gray(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.mode in _GRAY
    except (OSError, UnidentifiedImageError):
        return True  # named later, with all the others


def _fill(
    folder: Path,
    files: Sequence[Path],
    size: int,
    fit: str,
    channels: int,
    progress: Callable[[int, int], None],
    threads: int,
) -> list[str]:
    """Decodes missing rows; returns the unreadable files (``["color"]``: not a gray store)."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(files), size, size, channels)
    array = _open_map(folder / "images.npy", shape)
    filled = _open_map(folder / "filled.npy", (len(files),))
    bad: list[str] = []

    def one(i: int) -> None:
        try:
            if channels == 1 and not _is_gray(files[i]):
                bad.append("color")
                return
            array[i] = decode(files[i], size, fit, channels)
            filled[i] = 1
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            bad.append(files[i].name)

    todo = np.flatnonzero(filled == 0)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(todo), _CHUNK):
            list(pool.map(one, todo[start : start + _CHUNK].tolist()))
            progress(len(files) - len(todo) + min(start + _CHUNK, len(todo)), len(files))
            if "color" in bad:
                return ["color"]
    array.flush()
    filled.flush()
    return sorted(bad)


def _open_map(path: Path, shape: tuple[int, ...]) -> Any:
    if path.exists():
        old = np.lib.format.open_memmap(path, mode="r+")
        if old.shape == shape:
            return old
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _remove(folder: Path) -> None:
    for item in folder.glob("*"):
        item.unlink()
    folder.rmdir()


def _refuse(bad: Sequence[str], root: Path) -> None:
    shown = ", ".join(bad[:5]) + (" ..." if len(bad) > 5 else "")
    noun = "image" if len(bad) == 1 else "images"
    raise UserError(
        f"{len(bad)} {noun} cannot be read: {shown}",
        str(root),
        "Repair the files or take their rows out of the table.",
    )


def normalize(batch: Bytes, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [B, H, W, C in {1, 3}] -> float32 [B, 3, H, W], (x / 255 - mean) / std."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float().div_(255)
    shape = (1, 3, 1, 1)
    m, s = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
    return (x.expand(-1, 3, -1, -1) - m) / s
