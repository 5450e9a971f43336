"""Scores whose true AUROC is known: patients, candidates that differ, and seeds of a candidate.

The score of candidate k, trained with seed s, for an image i with label y:

    sqrt(.70) hard(i) + sqrt(.23) own(k, i) + sqrt(.07) luck(k, s, i) + y sqrt(2) Q(A(k, s))

with Q the normal quantile. ``hard`` is what all candidates find difficult, ``own`` what this one
does whatever its seed, ``luck`` what the seed adds; each is normal, 60% of it the patient's and
40% the image's. Inside a class scores have variance 1, so that A(k, s) is the AUROC over all
patients there could be. A patient's images share their label, so that every pair of a positive and
a negative image is of two patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from autopeft.evaluation import Floats, Predictions

SHARED, OWN, LUCK = 0.70, 0.23, 0.07
PATIENT = 0.60
SPLITS = ("truth", "search", "confirm", "test")


@dataclass(frozen=True)
class World:
    """What is true.

    Attributes:
        auroc: [K, G], of each candidate (mean over its seeds) in each group.
        number: the world's own; everything drawn follows from it.
        seed_sd: spread of a training's AUROC around its candidate's.
        positive: share of ill patients, in every group.
        images: mean images a patient, at least one each.
    """

    auroc: Floats
    number: int
    seed_sd: float = 0.0
    positive: float = 0.4
    images: int = 1

    def truth(self, k: int, seed: int, group: int = 0) -> float:
        """AUROC over all patients of candidate ``k`` as this seed trained it."""
        moved = self.seed_sd * self.draws("truth", k, seed).normal() if self.seed_sd else 0.0
        return float(np.clip(self.auroc[k, group] + moved, 0.5, 0.999))

    def draws(self, split: str, *which: int) -> np.random.Generator:
        """A generator of its own for each thing that is drawn."""
        # Numbers start at 1: numpy fills short seeds up with zeros.
        return np.random.default_rng([self.number, SPLITS.index(split), *(1 + w for w in which)])

    def patients(self, split: str, count: int) -> Patients:
        """So many new patients of each group."""
        rng = self.draws(split)
        groups = self.auroc.shape[1]
        images = 1 + rng.poisson(self.images - 1, count * groups)
        patient = np.repeat(np.arange(count * groups), images)
        ill = np.arange(count) < round(self.positive * count)
        return Patients(
            self,
            split,
            patient,
            np.repeat(np.arange(groups), count)[patient],
            np.tile(ill, groups)[patient].astype(float),
            _noise(rng, patient),
        )


@dataclass(frozen=True)
class Patients:
    """Patients of one split: who they are, and what is hard about them.

    Attributes:
        world: where they live.
        split: ``search``, ``confirm`` or ``test``.
        patient: [N].
        group: [N], index.
        label: [N], 0 or 1.
        hard: [N], the part of the score that all candidates share.
    """

    world: World
    split: str
    patient: np.ndarray
    group: np.ndarray
    label: Floats
    hard: Floats

    def scored(self, k: int, seed: int = 0) -> Predictions:
        """What candidate ``k`` says of them when it was trained with this seed."""
        own = _noise(self.world.draws(self.split, k), self.patient)
        luck = _noise(self.world.draws(self.split, k, seed), self.patient)
        groups = range(self.world.auroc.shape[1])
        shift = np.sqrt(2) * ndtri([self.world.truth(k, seed, g) for g in groups])
        score = np.sqrt(SHARED) * self.hard + np.sqrt(OWN) * own + np.sqrt(LUCK) * luck
        return Predictions(
            score=(score + shift[self.group] * self.label)[:, None],
            target=self.label[:, None],
            patient=self.patient,
            part=np.zeros(len(self.patient), dtype=int),
            groups={"group": np.array([f"group={g}" for g in groups])[self.group]},
            classes=("finding",),
            kind="binary",
            split=self.split,
            repeat=seed,
        )


def _noise(rng: np.random.Generator, patient: np.ndarray) -> Floats:
    """[N] of variance 1; what belongs to the patient is in all their images."""
    level = rng.normal(size=int(patient.max()) + 1)[patient]
    return np.sqrt(PATIENT) * level + np.sqrt(1 - PATIENT) * rng.normal(size=len(patient))


def differing(rng: np.random.Generator, count: int, mean: float, sd: float) -> Floats:
    """[K, 1]: candidates whose true AUROC differs."""
    return np.clip(mean + sd * rng.normal(size=(count, 1)), 0.55, 0.98)
