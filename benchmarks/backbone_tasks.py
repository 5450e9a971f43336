"""Tasks, features, folds and the linear probe of `benchmarks/backbone.py`.

Everything is decided inside the training folds: standardization, and the probe's C by 3-fold
cross-validation by patient. AUROC is computed from pairs inside one fold, because scores of
differently trained models are never pooled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

SIZE = 112
STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Fold = tuple[Ints, Ints]


@dataclass(frozen=True)
class Task:
    """Images with one binary target.

    Attributes:
        name: Short name, also the row of the table.
        images: uint8 [N, 112, 112], gray, squashed to a square.
        target: 0 or 1, [N].
        person: The data set's own patient id [N]; never printed.
        demographics: float [N, k] without the target itself, or None where there are none.
    """

    name: str
    images: npt.NDArray[np.uint8]
    target: Ints
    person: npt.NDArray[np.str_]
    demographics: Floats | None

    @property
    def patient(self) -> Ints:
        """Patients numbered 0, 1, ... [N]; one never lies on both sides of a fold."""
        return np.unique(self.person, return_inverse=True)[1].astype(np.int64)

    def keep(self, rows: npt.NDArray[np.bool_]) -> Task:
        """Returns the task of some of its rows."""
        known = None if self.demographics is None else self.demographics[rows]
        return Task(self.name, self.images[rows], self.target[rows], self.person[rows], known)


SOURCES = {
    "NIH pneumonia": ("nih_cxr_pneumonia1000", "pneumonia"),
    "NIH sex": ("nih_cxr_pneumonia1000", "sex"),
    "NIH-64 abnormal": ("nih_cxr64_1000", "abnormal"),
    "bacterial vs viral": ("paed_pneumonia", "bacterial"),
    # Measured only to choose the LoRA recipe: other patients than NIH pneumonia and NIH sex.
    "NIH-64 sex": ("nih_cxr64_1000", "sex"),
}


def load(root: Path, name: str) -> Task | None:
    """Returns a task, or None where its folder is absent."""
    folder, target = SOURCES[name][0], SOURCES[name][1]
    table = root / folder / "labels.csv"
    if not table.is_file():
        return None
    rows = pd.read_csv(table, dtype={"patient": str})
    if folder == "paed_pneumonia":
        rows = rows[rows.pneumonia == 1].reset_index(drop=True)
    label = rows.sex == "M" if target == "sex" else rows[target] == 1
    demographics = None
    if "sex" in rows:
        columns = {"age": rows.age / 10, "view": rows["view"] == "AP", "sex": rows.sex == "M"}
        columns.pop(target, None)
        demographics = np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], 1)
    return Task(
        name,
        np.stack([picture(root / folder / path) for path in rows.path]),
        label.to_numpy().astype(np.int64),
        rows.patient.to_numpy(dtype=str),
        demographics,
    )


def picture(path: Path) -> npt.NDArray[np.uint8]:
    """Returns one image as uint8 [112, 112]."""
    with Image.open(path) as image:
        gray = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(gray)


def pixels(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Returns the network's input, float32 [N, 3, 112, 112]."""
    gray = torch.from_numpy(images).float().div(255)[:, None].expand(-1, 3, -1, -1)
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    return (gray - mean) / std


def readout(tokens: torch.Tensor) -> torch.Tensor:
    """Returns class token and mean of the patch tokens, [B, 1 + P, D] -> [B, 2 D]."""
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)


@torch.inference_mode()
def features(model: torch.nn.Module, images: npt.NDArray[np.uint8]) -> Floats:
    """Returns the normed readout of a timm ViT, float [N, 2 D]."""
    model.eval()
    parts = [images[start : start + 50] for start in range(0, len(images), 50)]
    forward = model.forward_features
    return np.concatenate([readout(forward(pixels(part))).double().numpy() for part in parts])


def thumbnail(images: npt.NDArray[np.uint8]) -> Floats:
    """Returns the 8 x 8 block means, float [N, 64]."""
    return images.reshape(len(images), 8, SIZE // 8, 8, SIZE // 8).mean((2, 4)).reshape(-1, 64)


def folds(task: Task, seed: int, count: int = 5) -> Iterator[Fold]:
    """Yields (train rows, held-out rows), disjoint by patient, stratified by target."""
    cut = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    yield from cut.split(task.target, task.target, task.patient)


@dataclass(frozen=True)
class Probe:
    """A fitted logistic regression on standardized features."""

    mean: Floats
    scale: Floats
    weight: Floats
    bias: float
    strength: float

    def score(self, values: Floats) -> Floats:
        """Returns logits [N]."""
        return (values - self.mean) / self.scale @ self.weight + self.bias


def fit(values: Floats, target: Ints, strengths: tuple[float, ...]) -> list[Probe]:
    """Fits one probe for each C, weakest first, each starting from the one before."""
    mean, scale = values.mean(0), values.std(0) + 1e-8
    standard = (values - mean) / scale
    model = LogisticRegression(warm_start=True, max_iter=300, tol=1e-3)
    probes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in strengths:
            model.set_params(C=strength).fit(standard, target)
            weight, bias = model.coef_[0].copy(), float(model.intercept_[0])
            probes.append(Probe(mean, scale, weight, bias, strength))
    return probes


def probe(values: Floats, task: Task, train: Ints) -> Probe:
    """Fits on the training rows, C by 3-fold cross-validation by patient inside them."""
    inner = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    target, patient = task.target[train], task.patient[train]
    scores = np.zeros(len(STRENGTHS))
    for kept, left in inner.split(target, target, patient):
        fitted = fit(values[train][kept], target[kept], STRENGTHS)
        left_values = values[train][left]
        fold = np.zeros(len(left), dtype=np.int64)
        scores += [auroc(p.score(left_values), target[left], fold) for p in fitted]
    return fit(values[train], target, STRENGTHS[: int(scores.argmax()) + 1])[-1]


def out_of_fold(values: Floats, task: Task, seed: int) -> tuple[Floats, Ints]:
    """Returns the probe's out-of-fold logits [N] and the fold of each row [N]."""
    score, fold = np.zeros(len(task.target)), np.zeros(len(task.target), dtype=np.int64)
    for index, (train, held_out) in enumerate(folds(task, seed)):
        score[held_out] = probe(values, task, train).score(values[held_out])
        fold[held_out] = index
    return score, fold


def auroc(score: Floats, target: Ints, fold: Ints, weight: Floats | None = None) -> float:
    """Returns the share of correctly ordered (positive, negative) pairs, inside folds only.

    Args:
        score: Logits [N].
        target: 0 or 1 [N].
        fold: Which model scored the row [N].
        weight: How often the row counts [N] (patient bootstrap); None is once.
    """
    weight = np.ones(len(score)) if weight is None else weight
    right = total = 0.0
    for index in np.unique(fold):
        positive = (fold == index) & (target == 1)
        negative = (fold == index) & (target == 0)
        gap = score[positive][:, None] - score[negative][None]
        ordered = (gap > 0) + 0.5 * (gap == 0)
        right += weight[positive] @ ordered @ weight[negative]
        total += weight[positive].sum() * weight[negative].sum()
    return right / total
