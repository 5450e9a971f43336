"""What travels between the driver's disk and a node that does not see it.

Towards a node: the decoded images, the weights file and the adapter that a run starts from,
copied once a node into a folder of its own, and the state that a job continues from. Back:
predictions and states, which the driver writes. Names that come from a worker are checked before
they become paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from autopeft.errors import RunError, UserError
from autopeft.files import inside, lock, new_folder, write_bytes, write_json
from autopeft.job import Job, Outcome, Setup

CHUNK = 16 * 2**20  # bytes a message
NODE_DIR = "AUTOPEFT_NODE_DIR"  # environment variable of a node: where copies are kept
_COPIED = "copied.json"

# (file, offset) -> bytes; the caller decides how they travel.
Read = Callable[[str, int], bytes]


@dataclass(frozen=True)
class Listed:
    """A file that nodes may ask for.

    Attributes:
        bytes: its size.
        sha256: hash of its content.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parcel:
    """Files that a worker on another node has written.

    Attributes:
        predictions: file name and content, or None.
        state: folder name and content of its files, or None.
    """

    predictions: tuple[str, bytes] | None = None
    state: tuple[str, Mapping[str, bytes]] | None = None


# ---- the driver's side --------------------------------------------------------------------------


class FileServer:
    """Gives nodes the files that a setup names, and nothing else.

    Args:
        setup: ``images``, ``weights`` and ``init_adapter`` are served.
    """

    def __init__(self, setup: Setup) -> None:
        self._paths: dict[str, Path] = {}
        self._listed: dict[str, Listed] = {}
        if setup.images:
            for name in ("images.npy", "store.json"):
                self._paths[f"images/{name}"] = Path(setup.images) / name
        if setup.weights:
            self._paths["weights"] = Path(setup.weights)
        if setup.init_adapter:
            root = Path(setup.init_adapter)
            for path in filter(Path.is_file, root.rglob("*")):
                self._paths[f"init/{path.relative_to(root)}"] = path

    def listing(self) -> dict[str, Listed]:
        """Name -> size and hash; read once, however many nodes ask."""
        for name, path in self._paths.items():
            if name not in self._listed:
                with path.open("rb") as stream:
                    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                self._listed[name] = Listed(path.stat().st_size, sha256)
        return dict(self._listed)

    def read(self, name: str, offset: int) -> bytes:
        """Up to ``CHUNK`` bytes of a served file."""
        with self._paths[name].open("rb") as stream:
            stream.seek(offset)
            return stream.read(CHUNK)


def state_files(run_dir: str, state: str | None) -> dict[str, bytes] | None:
    """Content of a state folder, for a job that goes to another node.

    One that is gone has no files: the worker then fails as it would beside the run's folder.
    """
    if state is None:
        return None
    folder = Path(run_dir) / "states" / state
    if not folder.is_dir():
        return {}
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def unpack(run_dir: str, parcel: Parcel) -> None:
    """Writes what a worker sent below the run's folder; each name appears with whole content.

    Raises:
        RunError: a name that would leave its folder.
    """
    root = Path(run_dir)
    if parcel.state is not None:
        name, files = parcel.state
        with new_folder(_below(root / "states", name)) as folder:
            for file, content in files.items():
                _below(folder, file).write_bytes(content)
    if parcel.predictions is not None:
        name, content = parcel.predictions
        write_bytes(_below(root / "predictions", name), content, 0o600)


def _below(folder: Path, name: str) -> Path:
    """``folder / name`` where the name is a plain one."""
    if not name or name.startswith(".") or Path(name).name != name or "\0" in name:
        raise RunError(f"a worker sent a file named {name[:80]!r}")
    return inside(folder, name)


# ---- the node's side ----------------------------------------------------------------------------


@dataclass
class Node:
    """The folder of a node that does not see the driver's disk.

    It keeps copies and frozen features for the next run, and one folder for each live worker.

    Attributes:
        root: the folder; only its owner can look into it.
    """

    root: Path = field(default_factory=lambda: node_dir())
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def settle(self, setup: Setup, listing: Mapping[str, Listed], read: Read) -> Setup:
        """The setup with this node's own places; copies what is not here yet.

        Args:
            setup: the driver's.
            listing: what its file server offers.
            read: asks the file server.
        """
        _own(self.root)
        (self.root / "features").mkdir(exist_ok=True)
        places = {"run_dir": str(self._scratch()), "cache": str(self.root / "features")}
        if "images/images.npy" in listing:
            name = Path(setup.images).name  # features are kept under this name
            wanted = {f: listing[f"images/{f}"] for f in ("images.npy", "store.json")}
            source = lambda file, offset: read(f"images/{file}", offset)  # noqa: E731
            places["images"] = str(fetch(self.root / "images" / name, wanted, source))
        if setup.weights and "weights" in listing:
            entry, name = listing["weights"], Path(setup.weights).name
            folder = self.root / "weights" / entry.sha256[:16]
            fetch(folder, {name: entry}, lambda _, offset: read("weights", offset))
            places["weights"] = str(folder / name)
        wanted = {f.removeprefix("init/"): e for f, e in listing.items() if f.startswith("init/")}
        if wanted:
            folder = self.root / "init" / setup.init_sha256[:16]
            source = lambda file, offset: read(f"init/{file}", offset)  # noqa: E731
            places["init_adapter"] = str(fetch(folder, wanted, source))
        return replace(setup, **places)  # type: ignore[arg-type]

    def _scratch(self) -> Path:
        """A folder for this worker's states and predictions; those of dead workers go."""
        folder = self.root / "workers"
        folder.mkdir(exist_ok=True)
        with lock(folder / ".one", wait=True):  # one worker at a time looks and makes its own
            for old in folder.glob("*.lock"):
                with contextlib.suppress(UserError), lock(old):  # locked: its worker is alive
                    shutil.rmtree(old.with_suffix(""), ignore_errors=True)
                    old.unlink()
            scratch = Path(tempfile.mkdtemp(dir=folder))
            self._open.enter_context(lock(scratch.with_suffix(".lock")))
        return scratch


def node_dir() -> Path:
    """``$AUTOPEFT_NODE_DIR``, or a folder of this user below the temporary one."""
    named = os.environ.get(NODE_DIR)
    return Path(named or Path(tempfile.gettempdir()) / f"autopeft-{os.getuid()}").absolute()


def _own(root: Path) -> None:
    """Makes the node's folder, for its owner only; below /tmp others could have made it first."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = root.lstat()
    if stat.st_uid != os.getuid() or root.is_symlink():
        raise RunError(f"{root} belongs to somebody else; set {NODE_DIR} on that node")
    root.chmod(0o700)


def fetch(folder: Path, wanted: Mapping[str, Listed], read: Read) -> Path:
    """Copies files into ``folder`` unless they are there. Workers of one node wait for each other.

    Args:
        folder: appears under its name only with everything in it, checked.
        wanted: file name -> size and hash.
        read: (file name, offset) -> bytes.

    Raises:
        RunError: what arrived is not what was listed.
    """
    expected = {name: [entry.bytes, entry.sha256] for name, entry in wanted.items()}
    with lock(folder.with_name(f"{folder.name}.lock"), wait=True):
        with contextlib.suppress(OSError, ValueError):
            sizes = {name: (folder / name).stat().st_size for name in wanted}
            said = json.loads((folder / _COPIED).read_text())
            if said == expected and sizes == {n: e.bytes for n, e in wanted.items()}:
                return folder
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a copier that was killed
            shutil.rmtree(left, ignore_errors=True)
        with new_folder(folder) as fresh:
            for name, entry in wanted.items():
                _copy(fresh / name, name, entry, read)
            write_json(fresh / _COPIED, expected)
    return folder


def _copy(path: Path, name: str, entry: Listed, read: Read) -> None:
    digest, offset = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        while offset < entry.bytes and (chunk := read(name, offset)):
            digest.update(chunk)
            stream.write(chunk)
            offset += len(chunk)
    if (offset, digest.hexdigest()) != (entry.bytes, entry.sha256):
        raise RunError(f"{name} changed while it was copied to another node; start again")


@contextlib.contextmanager
def state_of(setup: Setup, job: Job, files: Mapping[str, bytes] | None) -> Iterator[None]:
    """Lays the job's state where the worker looks for it, and clears the worker's folder after."""
    root = Path(setup.run_dir)
    if files is not None and job.state is not None:
        with new_folder(_below(root / "states", job.state)) as folder:
            for name, content in files.items():
                _below(folder, name).write_bytes(content)
    try:
        yield
    finally:
        for item in ("states", "predictions"):
            shutil.rmtree(root / item, ignore_errors=True)


def pack(setup: Setup, job: Job, outcome: Outcome) -> Parcel:
    """The files that an outcome names, except the state that came with the job."""
    predictions = state = None
    if outcome.predictions is not None:
        path = Path(setup.run_dir) / "predictions" / outcome.predictions
        predictions = (outcome.predictions, path.read_bytes())
    if outcome.state is not None and outcome.state != job.state:
        state = (outcome.state, state_files(setup.run_dir, outcome.state) or {})
    return Parcel(predictions, state)
