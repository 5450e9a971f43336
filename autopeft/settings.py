"""Settings: everything that a run was asked, as one frozen dataclass saved with the run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from autopeft.errors import UserError, nearest
from autopeft.files import write_text

# What may change between two starts of one run: it changes where and how long, never a value.
MAY_CHANGE = frozenset(
    {
        "trials",
        "budget",
        "workers",
        "runner",
        "gpus_per_worker",
        "cache_gb",
        "offline",
        "quiet",
        "json",
    }
    | {"debug", "runs_dir", "data_root", "name", "address"}
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CHOICES = {
    "fit": ("pad", "crop", "squash"),
    "sampler": ("tpe", "random", "nsga2", "gp"),
    "inner": ("auto", "holdout", "cv5"),
    "runner": ("serial", "ray"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "init_mode": ("merged", "naive", "orthogonal"),
}
_AT_LEAST = {
    "trials": 1,
    "epochs": 1,
    "batch_size": 2,
    "cpus_per_worker": 0,
    "views": 0,
    "confirm": 1,
    "seeds": 1,
    "min_group": 1,
    "image_size": 8,
    "budget": 1.0,
    "gpus_per_worker": 0.0,
    "cache_gb": 0.0,
    "margin": 0.0,
    "workers": 0,
}


_WIDEST = 0.5  # margin

SEEDS = (3, 5)  # to screen the finalists; for the last two of them and all baselines

# The smallest run that shows everything, so that `autopeft search` alone answers within minutes.
# Written to the run's settings and protocol like flags.
FIRST_RUN: dict[str, Any] = {
    "space": "quick",
    "trials": 8,
    "epochs": 3,
    "views": 2,
    "confirm": 2,
    "seeds": 2,
    "inner": "holdout",
    "min_group": 10,
    "baselines": ("linear_probe", "lora_r8", "full"),
}


@dataclass(frozen=True)
class Settings:
    """One field for each flag of ``autopeft search``, with the flag's default.

    Attributes:
        dataset: a data set's name or a CSV file.
        data_root: folder of the images (default: the CSV's own folder).
        label: label columns (or the data set's task); empty = the data set's default.
        group: attributes such as ``sex`` or ``age:60`` (age cut: ``age>=60`` and ``age<60``).
        patient_column: column of the patient id in a CSV.
        split_column: column with given splits in a CSV.
        data_option: options of the data set (``uncertain=ones``).
        backbone: timm name.
        weights: weights file instead of the hub's.
        image_size: side in pixels; None = the backbone's own.
        fit: how an image becomes square.
        space: search space by name or path.
        objective: objective by name or path.
        trials: candidates to ask for.
        budget: seconds of wall time of the whole command, over all resumes; None = no limit.
        epochs: length of the full training schedule.
        batch_size: images a step.
        sampler: how candidates are proposed.
        inner: what trials are measured on: ``holdout`` (the search patients), ``cv5`` (five folds
            of train and search, for small data), or ``auto``: by the counts (docs/cv5.md).
        min_group: positives and negatives (patients, in search) that a group needs to count.
        runner: who executes jobs.
        workers: number of workers; 0 = one per 2 cores or GPU.
        cpus_per_worker: torch threads of a worker; 0 = cores // workers.
        gpus_per_worker: GPU share of a worker.
        address: of an existing Ray cluster, ``auto`` or ``HOST:PORT``; empty = one on this
            machine. Implies ``runner="ray"``.
        precision: number format of the frozen network while searching.
        cache_gb: disk space for frozen states; None = a quarter of what is free, at most 20.
        views: augmented views of an image; 1 = plain only, 0 = a new one at each epoch.
        confirm: finalists.
        seeds: fresh seeds of finalists and baselines; None = `SEEDS`: 3 to screen the finalists,
            5 for the last two and the baselines.
        seed: seed of everything but the splits.
        split_seed: seed of the splits.
        label_fraction: share of the train patients that is trained on; nested, fixed by
            ``split_seed``. The other splits stay whole.
        init_adapter: folder of an earlier adapter to start from (domain first, then task).
        init_mode: how: ``merged`` folds it into the backbone, ``naive`` goes on training it,
            ``orthogonal`` is merged with new LoRA updates kept orthogonal to it.
        margin: non-inferiority margin on the primary metric.
        name: the run's name; empty = made from the settings.
        runs_dir: folder of all runs.
        baselines: comma-separated baselines; empty = those the objective needs.
        offline: never ask a hub.
        json: print ``result.json`` to stdout instead of the summary.
        quiet: no progress on stderr.
        debug: show tracebacks.
    """

    dataset: str = "phantom"
    data_root: str | None = None
    label: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    patient_column: str | None = None
    split_column: str | None = None
    data_option: Mapping[str, str] | None = None
    backbone: str = "autopeft_vit_nano"
    weights: str | None = None
    image_size: int | None = None
    fit: str = "pad"
    space: str = "default"
    objective: str = "auroc"
    trials: int = 32
    budget: float | None = None
    epochs: int = 9
    batch_size: int = 32
    sampler: str = "tpe"
    inner: str = "auto"
    min_group: int = 50
    runner: str = "serial"
    workers: int = 0
    cpus_per_worker: int = 0
    gpus_per_worker: float = 0.0
    address: str = ""
    precision: str = "auto"
    cache_gb: float | None = None
    views: int = 4
    confirm: int = 3
    seeds: int | None = None
    seed: int = 0
    split_seed: int = 0
    label_fraction: float = 1.0
    init_adapter: str | None = None
    init_mode: str = "merged"
    margin: float = 0.01
    name: str = ""
    runs_dir: str = "runs"
    baselines: tuple[str, ...] = ()
    offline: bool = False
    json: bool = False
    quiet: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            if value not in choices:
                raise UserError(f"{value!r} is not possible", _flag(key), nearest(value, choices))
        if self.name and not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name[:60]!r} is no name for a run",
                "--name",
                "Up to 100 letters, digits, dots, dashes; it starts with a letter or digit.",
            )
        for key in ("seed", "split_seed"):
            if not 0 <= getattr(self, key) < 2**32:
                raise UserError(
                    f"{getattr(self, key)} is out of range", _flag(key), "It is 0 to 4294967295."
                )
        if "://" in self.address:
            raise UserError(
                "the run's files lie where autopeft runs, and a Ray client's cluster elsewhere",
                f"--address {self.address}",
                "Give the head's host:port, on a machine that is a node of the cluster.",
            )
        if not 0 < self.label_fraction <= 1:  # NaN is not, either
            raise UserError(
                f"{self.label_fraction} is out of range",
                "--label-fraction",
                "It is above 0 and at most 1.",
            )
        if self.init_adapter is None and self.init_mode != "merged":
            raise UserError(
                f"{self.init_mode} needs an adapter to start from",
                "--init-mode",
                "Give --init-adapter runs/NAME/best.",
            )
        for key, low in _AT_LEAST.items():
            value = getattr(self, key)
            if value is not None and not value >= low:  # NaN is not, either
                raise UserError(f"{value} is too small", _flag(key), f"It must be at least {low}.")
        if self.margin > _WIDEST:
            fix = (
                f"It is a difference in AUROC, at most {_WIDEST:g}: with more nothing could fail."
            )
            raise UserError(f"{self.margin:g} is too large", "--margin", fix)
        if not str(self.runs_dir).strip():
            raise UserError("is empty", "--runs-dir", "Name a folder, e.g. runs.")

    def digest(self) -> str:
        """Eight hex digits over all settings that may not change between two starts."""
        fixed = {k: v for k, v in asdict(self).items() if k not in MAY_CHANGE}
        if self.label_fraction == 1:  # so that runs from before it existed keep their names
            del fixed["label_fraction"]
        if self.init_adapter is None:
            del fixed["init_adapter"], fixed["init_mode"]
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def screen_seeds(self) -> int:
        """Fresh seeds that every finalist gets on ``confirm``."""
        return SEEDS[0] if self.seeds is None else self.seeds

    @property
    def final_seeds(self) -> int:
        """Fresh seeds of the last two finalists, of the baselines and of all that is reported."""
        return SEEDS[1] if self.seeds is None else self.seeds

    @property
    def run_name(self) -> str:
        """``--name``, or ``<dataset>-<objective>-<digest>``."""
        stem, aim = Path(self.dataset).stem, Path(self.objective).stem
        if self.dataset.endswith(".csv") and stem in ("labels", "train", "data", "table"):
            stem = Path(self.dataset).resolve().parent.name
        return self.name or f"{stem}-{aim}-{self.digest()}"

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.runs_dir) / self.run_name

    def save(self, path: Path) -> None:
        """Writes the settings as YAML."""
        plain = json.loads(json.dumps(asdict(self)))
        write_text(path, yaml.safe_dump(plain, sort_keys=False))

    def check_same(self, saved: Settings) -> None:
        """Refuses to continue a run under settings that would change its values.

        Raises:
            UserError: lists each differing flag with the saved and the new value.
        """
        changed = [
            f"--{f.name.replace('_', '-')} was {getattr(saved, f.name)!r}, "
            f"now {getattr(self, f.name)!r}"
            for f in fields(self)
            if f.name not in MAY_CHANGE and getattr(self, f.name) != getattr(saved, f.name)
        ]
        if changed:
            raise UserError(
                f"this run was started with other settings: {'; '.join(changed)}",
                str(self.run_dir),
                "Give the same flags, or take a new --name.",
            )


def from_mapping(values: Mapping[str, Any], where: str) -> Settings:
    """Settings from plain values, e.g. a YAML file (hyphens and underscores are equal).

    Raises:
        UserError: an unknown field, or a value of the wrong type.
    """
    known = {f.name: f for f in fields(Settings)}
    clean: dict[str, Any] = {}
    for raw_key, value in values.items():
        key = str(raw_key).replace("-", "_")
        if key not in known:
            raise UserError(f"unknown setting {raw_key!r}", where, nearest(key, known))
        clean[key] = _typed(key, str(known[key].type), value, where)
    return Settings(**clean)


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the small settings of the first run where the synthetic task is asked for.

    An address implies the Ray runner.

    Raises:
        UserError: an address for the serial runner.
    """
    plain = {str(k).replace("-", "_"): v for k, v in values.items()}
    first = plain.get("dataset", "phantom") == "phantom"
    if plain.get("address") and plain.setdefault("runner", "ray") == "serial":
        raise UserError(
            "serial runs on no cluster", "--address", "Leave out --runner, or --address."
        )
    short = FIRST_RUN if first else {}
    if "objective" in plain:  # it calls for baselines of its own
        short = {k: v for k, v in short.items() if k != "baselines"}
    return {**short, **plain}


def load(path: Path) -> dict[str, Any]:
    """Reads a settings YAML as plain values (flags are laid over it by the caller).

    Raises:
        UserError: the file is missing or no YAML mapping.
    """
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    except UnicodeDecodeError:
        raise UserError("is not a text file", str(path)) from None
    except yaml.YAMLError as error:
        raise UserError(f"is not valid YAML ({' '.join(str(error).split())})", str(path)) from None
    if not isinstance(value, dict):
        raise UserError("holds no settings", str(path), "Write lines such as `trials: 16`.")
    return value


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "tuple": "a word or a list of words",
    "Mapping": "a list of key: value",
    "str": "a word",
}
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """``45m``, ``8h`` or ``600`` in seconds."""
    number, scale = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        return float(number) * scale
    except ValueError:
        raise UserError(f"{text!r} is no time", "--budget", "Write 45m, 8h or 600s.") from None


def _typed(key: str, kind: str, value: Any, where: str) -> Any:
    """One value of a settings file in the field's own type."""
    if value is None and "None" in kind:
        return None
    if key == "budget" and isinstance(value, str):
        return seconds(value)
    plain = (str, int, float, Path)
    try:
        if "tuple" in kind:
            every = value if isinstance(value, (list, tuple)) else [value]
            if all(isinstance(v, plain) for v in every):
                return tuple(map(str, every))
        elif "Mapping" in kind:
            if isinstance(value, Mapping):
                return {str(k): str(v) for k, v in value.items()}
        elif isinstance(value, bool):
            if "bool" in kind:
                return value
        elif "int" in kind:
            if isinstance(value, int) or int(value) == float(value):
                return int(value)
        elif "float" in kind:
            return float(value)
        elif kind.startswith("str") and isinstance(value, plain):
            return str(value)
    except (TypeError, ValueError, OverflowError):
        pass
    expected = next(words for name, words in _WORDS.items() if name in kind)
    raise UserError(f"{value!r} is not {expected}", f"{where} ({_flag(key)})")
