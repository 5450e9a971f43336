"""`phantom`: a synthetic radiograph task, made on this machine, with biases one can plant.

Nothing in it is a patient. Use it to try autopeft, to test it, and to see whether an objective
finds a bias of known size. The images are written once and then read like any other table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from autopeft.data.download import refuse_columns
from autopeft.data.film import Film, draw
from autopeft.data.frame import Source, build_task
from autopeft.data.options import read_options
from autopeft.data.table import frame_source, read_csv
from autopeft.data.task import Task
from autopeft.errors import UserError, nearest
from autopeft.settings import Settings

GROUPS = ("sex", "age:60", "scanner")
LABELS = ("lesion", "nodule", "opacity", "effusion")
_VERSION = 2  # raise when the same options give other images
EVERYONE = "everyone"
_BIASED = ("sex=F", "sex=M", "age<60", "age>=60", "scanner=A", "scanner=B", "scanner=C", EVERYONE)
_NOISY = ("all", "train")
# Fields that came later: left out of the digest at their default, so that sets made before keep
# their folder.
_LATER = ("label_noise_split", "copies", "women")


@dataclass(frozen=True)
class Phantom:
    """Sizes and planted biases; each field is a ``--data-option``.

    Attributes:
        patients: number of patients.
        images_per_patient: images of each patient.
        size: side of an image in pixels.
        prevalence: share of patients with a lesion (a nodule or an opacity).
        women: share of the patients who are women. A group of few is learnt from few.
        contrast: contrast of the lesions; 1 is hard for an 8 x 8 thumbnail and fair for a small
            ViT, 0.6 is hard for both, 2 is easy.
        shortcut: how strongly the scanner's mark goes with the label in ``shortcut_in``: 0 not at
            all, 1 always. A reducible bias.
        shortcut_in: the group with the shortcut, or ``everyone``.
        weak_group: factor on the lesion contrast in ``weak_in``; below 1 an irreducible bias.
        weak_in: the group with weaker lesions.
        label_noise: share of the patients of ``label_noise_in`` whose lesion label is turned.
        label_noise_in: the group with wrong labels, or ``everyone``.
        label_noise_split: ``all``, or ``train``: then search, confirm and test have true labels
            (members and non-members of a memorization attack are both cut from train).
        duplicates: share of patients who are the patient before them: the same film, scanned again
            under another id (near-duplicates across patients).
        copies: how often such a film is scanned again, each time under an id of its own. With
            ``duplicates=1`` each patient is there 1 + copies times.
        seed: another seed, other patients.
    """

    patients: int = 400
    images_per_patient: int = 2
    size: int = 128
    prevalence: float = 0.4
    women: float = 0.5
    contrast: float = 1.0
    shortcut: float = 0.0
    shortcut_in: str = "sex=F"
    weak_group: float = 1.0
    weak_in: str = "sex=F"
    label_noise: float = 0.0
    label_noise_in: str = "sex=F"
    label_noise_split: str = "all"
    duplicates: float = 0.0
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("patients", 1, 10**6), ("images_per_patient", 1, 100), ("size", 32, 2048),
            ("prevalence", 0, 1), ("women", 0, 1), ("contrast", 0, 10), ("shortcut", 0, 1),
            ("weak_group", 0, 1), ("label_noise", 0, 1), ("duplicates", 0, 1),
            ("copies", 1, 100), ("seed", 0, 2**63 - 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(
                    f"{value:g} is out of range", f"--data-option {name}", f"{low} to {high}."
                )
        for name in ("shortcut_in", "weak_in", "label_noise_in"):
            value = getattr(self, name)
            if value not in _BIASED:
                raise UserError(
                    f"{value!r} is no group", f"--data-option {name}", nearest(value, _BIASED)
                )
        if self.label_noise_split not in _NOISY:
            where = "--data-option label_noise_split"
            found = self.label_noise_split
            raise UserError(f"{found!r} is not possible", where, nearest(found, _NOISY))

    @property
    def digest(self) -> str:
        """Ten hex digits over everything that decides the images."""
        plain = asdict(self)
        for f in fields(self):
            if f.name in _LATER and plain[f.name] == f.default:
                del plain[f.name]
        text = json.dumps([_VERSION, plain], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def load_phantom(settings: Settings, cache: Path) -> Task:
    """The phantom as a task, see ``phantom_source``."""
    return build_task(*phantom_source(settings, cache), settings.split_seed)


def phantom_source(settings: Settings, cache: Path) -> tuple[Source, tuple[str, ...]]:
    """The phantom's films and groups; the images are written into ``cache`` at the first call.

    Args:
        settings: label (default ``lesion``), group (default sex, age:60, scanner), data_option.
        cache: folder of ``phantom-<digest>/``.

    Raises:
        UserError: an unknown option or value, or a flag for data of the user's own.
    """
    refuse_columns(settings, "phantom")
    if settings.data_root:
        raise UserError(
            "phantom makes its own images", f"--data-root {settings.data_root}", "Leave it out."
        )
    defaults = {f.name: f.default for f in fields(Phantom)}
    options = read_options(settings.data_option, defaults, "phantom")
    phantom = Phantom(**options)
    folder = write_phantom(phantom, cache)
    plain = replace(
        settings,
        label=settings.label or ("lesion",),
        patient_column="patient_id",
        split_column=None,
    )
    frame = read_csv(folder / "labels.csv")
    source = frame_source(frame, plain, folder, "phantom")
    groups = settings.group or GROUPS
    note = "synthetic films (phantom): no statement about any patient"
    source = replace(source, name="phantom", notes=(note, *source.notes))
    if phantom.label_noise_split == "train" and "lesion" in source.classes:
        judged = source.label.copy()
        judged[:, source.classes.index("lesion")] = frame["true_lesion"].astype(np.float32)
        source = replace(source, judged=judged)
    return source, groups


def write_phantom(phantom: Phantom, cache: Path) -> Path:
    """Writes PNGs and ``labels.csv`` under a temporary name, then gives the folder its name.

    Returns:
        The folder; an existing one is used as it is.
    """
    folder = cache / f"phantom-{phantom.digest}"
    if (folder / "labels.csv").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=cache, prefix=f".{folder.name}."))
    try:
        (temporary / "images").mkdir()
        records = []
        for patient in range(phantom.patients):
            for view in range(phantom.images_per_patient):
                film, record = describe(phantom, patient, view)
                image = Image.fromarray(draw(film, phantom.size))
                image.save(temporary / record["path"], compress_level=1)
                records.append(record)
        pd.DataFrame(records).to_csv(temporary / "labels.csv", index=False)
        temporary.chmod(0o755)
        os.sync()
        if not folder.exists():  # another process may have been faster; its films are the same
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _random(phantom: Phantom, stream: int, patient: int, view: int = 0) -> np.random.Generator:
    """A generator of its own for each thing, so that nothing depends on how many are made."""
    key = np.array([phantom.seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, view, patient]))


def _person(phantom: Phantom, patient: int) -> dict[str, Any]:
    """Who a patient is and what they have; a duplicate is the patient before them."""
    original = _originals(phantom)[patient] if phantom.duplicates else patient
    draws = _random(phantom, 1, original).random(8)
    sick = bool(draws[0] < phantom.prevalence)
    person: dict[str, Any] = {
        "original": original,
        "sex": "F" if draws[1] < phantom.women else "M",
        "age": int(20 + 70 * draws[2]),
        "scanner": "ABC"[int(np.searchsorted([0.5, 0.8], draws[3]))],
        "nodule": sick and draws[4] < 0.65,
        "opacity": sick and not draws[4] < 0.4,
        "effusion": bool(draws[5] < 0.25),
    }
    turned = draws[6] < phantom.label_noise and in_group(person, phantom.label_noise_in)
    return {**person, "sick": sick, "lesion": sick != turned, "copied": original != patient}


@lru_cache(maxsize=4)
def _originals(phantom: Phantom) -> tuple[int, ...]:
    """Whom each patient's film is of: themselves, or the patient in front of a row of copies.

    A copy is never copied: behind a row of them stands a patient of their own.
    """
    found: list[int] = []
    left = 0
    for patient in range(phantom.patients):
        follows = patient > 0 and found[-1] == patient - 1  # the one before is no copy
        if follows and _random(phantom, 2, patient).random() < phantom.duplicates:
            left = phantom.copies
        found.append(found[-1] if left else patient)
        left = max(0, left - 1)
    return tuple(found)


def in_group(person: Mapping[str, Any], group: str) -> bool:
    """Whether a person belongs to a group such as ``sex=F``, ``age>=60`` or ``everyone``."""
    if group == EVERYONE:
        return True
    if group.startswith("age"):
        return bool((person["age"] >= 60) == (group == "age>=60"))
    attribute, _, value = group.partition("=")
    return bool(person[attribute] == value)


def describe(phantom: Phantom, patient: int, view: int) -> tuple[Film, dict[str, Any]]:
    """What one image shows, and its row of ``labels.csv``.

    Args:
        phantom: sizes and biases.
        patient: number of the patient.
        view: number of the image.
    """
    person = _person(phantom, patient)
    label = int(person["lesion"])
    strength = phantom.shortcut if in_group(person, phantom.shortcut_in) else 0.0
    chance = 0.5 + strength * (label - 0.5)
    mark = bool(_random(phantom, 3, patient, view).random() < chance)
    weak = phantom.weak_group if in_group(person, phantom.weak_in) else 1.0
    film = Film(
        female=person["sex"] == "F",
        age=person["age"],
        scanner=person["scanner"],
        nodule=person["nodule"],
        opacity=person["opacity"],
        effusion=person["effusion"],
        contrast=phantom.contrast * weak,
        mark=mark,
        anatomy=_random(phantom, 4, person["original"]),
        pose=_random(phantom, 6, person["original"], view),
        exposure=_random(phantom, 5, patient, view),
    )
    record = {
        "path": f"images/{patient:06d}_{view:02d}.png",
        "patient_id": f"phantom{patient:06d}",
        **{name: int(person[name]) for name in LABELS},
        "sex": person["sex"],
        "age": person["age"],
        "scanner": person["scanner"],
        # What no model may look at: the truth behind the labels.
        "true_lesion": int(person["sick"]),
        "mark": int(mark),
        "contrast": film.contrast,
        "duplicate_of": f"phantom{person['original']:06d}" if person["copied"] else "",
    }
    return film, record
