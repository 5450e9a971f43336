"""Shortcuts: does a score tell who the patient is, beyond what the label explains?

A score that is higher for women, or on one scanner, among patients *of the same label* carries
something besides the finding. For a group g the stratified AUROC is

    A_g = P(score of a patient in g > score of one outside g | same labels), ties count half

over all pairs of rows with the same labels (all classes together, so that a finding that is more
common in g explains nothing), scored by the same model. .5 is what a score without a shortcut
gives. It is a question, not a verdict: severity may differ between groups within a label.

Whether an attribute can be told at all is tested once: the attribute's values are permuted over
patients of the same labels, and the largest standardized |A_g - .5| over its groups and labels is
compared with its permuted ones (Westfall & Young 1993, max-T); Holm over attributes. Intervals
are a bootstrap over patients.

Papers: van Elteren 1960 (stratified rank-sum test). Banerjee et al., "Shortcuts" causing bias in
radiology artificial intelligence. Journal of the American College of Radiology 20 (2023). Gichoya
et al., AI recognition of patient race in medical imaging. Lancet Digital Health 4 (2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.evaluation import Floats, Predictions
from autopeft.metrics.gaps import holm
from autopeft.metrics.groups import LEAST, UNKNOWN, patient_index
from autopeft.metrics.intervals import Interval, bootstrap
from autopeft.metrics.pairs import Indices

PERMUTATIONS = 999
FEATURES = "frozen features"
_BLOCK = 64  # permutations at once


@dataclass(frozen=True)
class Shortcut:
    """How far one score tells one group from the rest of its attribute, at equal labels.

    Attributes:
        attribute: e.g. ``sex``.
        group: e.g. ``sex=F``. Of two groups only the first is listed: the other mirrors it.
        score: whose score: a class of the task, or ``frozen features`` for a probe on them.
        auroc: above .5: members of the group score higher.
        interval: over patients; of the strongest score of each group only.
        patients: patients inside the group, patients outside of it.
        p: of the whole attribute, permuted, all its groups and scores taken together.
        p_holm: the same, corrected for the number of attributes.
    """

    attribute: str
    group: str
    score: str
    auroc: float
    interval: Interval | None
    patients: tuple[int, int]
    p: float
    p_holm: float

    @property
    def sentence(self) -> str:
        """In fixed words."""
        what = f"AUROC {self.auroc:.2f}"
        if self.interval is not None:
            what += f", {self.interval.low:.2f} to {self.interval.high:.2f}"
        where = "higher" if self.auroc > 0.5 else "lower"
        own = self.interval is not None and not self.interval.low <= 0.5 <= self.interval.high
        tested = f"{self.attribute} p {self.p_holm:.3f} after correction"
        if not (self.p_holm < 0.05 and own):  # an attribute's test says nothing of each group
            return f"{self.score}: cannot tell {self.group} at equal labels ({what}; {tested})"
        if self.score == FEATURES:
            return f"{FEATURES} hold {self.group}: a probe on them tells it ({what}; {tested})"
        return f"{self.score}: {self.group} scores {where} at equal labels ({what}; {tested})"


def shortcuts(
    p: Predictions,
    attributes: Sequence[str] | None = None,
    n: int = PERMUTATIONS,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Shortcut]:
    """What the task's scores tell of the groups at equal labels, strongest score first.

    Args:
        p: a model's predictions.
        attributes: which; None = all. Groups need 10 patients inside and 10 outside.
        n: permutations.
        seed: of permutations and resamples.
        resamples: of each interval.
    """
    tables = [
        _table(p, attribute, p.rank_score, None, n, seed)
        for attribute in (p.groups if attributes is None else attributes)
    ]
    return _rows(p, [t for t in tables if t is not None], p.classes, seed, resamples)


def feature_shortcuts(
    p: Predictions,
    groups: Predictions,
    n: int = PERMUTATIONS,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Shortcut]:
    """What a probe on frozen features tells of the groups at equal labels.

    What the features do not hold, no fine-tuned score inherits from them; what they hold, a score
    may still leave alone. The model's own row is the one that counts.

    Args:
        p: any model's predictions on the same rows: targets, patients and groups are read.
        groups: a score of each group, ``classes`` named by groups (``baselines.simple``).
        n: permutations.
        seed: of permutations and resamples.
        resamples: of each interval.

    Raises:
        ValueError: the predictions are not on the same rows.
    """
    if not np.array_equal(p.patient, groups.patient):
        raise ValueError("predictions to be compared are not on the same rows")
    score = groups.score.astype(np.float64)
    tables = [_table(p, a, score, groups.classes, n, seed) for a in p.groups]
    names = (FEATURES,) * len(groups.classes)
    return _rows(p, [t for t in tables if t is not None], names, seed, resamples)


@dataclass(frozen=True)
class _Table:
    """One attribute: a cell for each group and score; ``cells`` are (group, column)."""

    attribute: str
    score: Floats
    member: Mapping[str, Floats]  # 1, 0 or NaN = unknown, [N]
    stratum: Indices
    patients: Mapping[str, tuple[int, int]]
    cells: tuple[tuple[str, int], ...]
    values: Floats
    p: float


def _rows(
    p: Predictions, tables: Sequence[_Table], names: Sequence[str], seed: int, resamples: int
) -> list[Shortcut]:
    adjusted = [p for p in holm([t.p for t in tables]) if p is not None]
    found = []
    for table, corrected in zip(tables, adjusted, strict=True):
        order = np.argsort(-np.abs(table.values - 0.5), kind="stable")
        seen: set[str] = set()
        for i in order:
            group, column = table.cells[i]
            interval = None
            if group not in seen:
                one = replace(
                    p,
                    score=table.score[:, [column]],
                    target=table.member[group][:, None],
                    part=table.stratum,
                    classes=(group,),
                    kind="binary",
                )
                interval = bootstrap(one, "auroc", n=resamples, seed=seed)
            seen.add(group)
            value, counts = float(table.values[i]), table.patients[group]
            found.append(
                Shortcut(
                    table.attribute, group, names[column], value, interval, counts, table.p,
                    corrected,
                )
            )  # fmt: skip
    return found


def _table(
    p: Predictions,
    attribute: str,
    score: Floats,
    own: Sequence[str] | None,
    n: int,
    seed: int,
) -> _Table | None:
    """All cells of an attribute and its permutation test; None where nothing can be scored.

    Args:
        p: targets, patients, parts and groups.
        attribute: which.
        score: [N, K].
        own: the group that each column is a score of; None = every column for every group.
        n: permutations.
        seed: of the permutations.
    """
    names = np.asarray(p.groups[attribute]).astype(str)
    counts = _patients(p, names)
    groups = [g for g, (inside, outside) in counts.items() if min(inside, outside) >= LEAST]
    if len(counts) == 2:
        groups = groups[:1]
    every = range(score.shape[1])
    cells = tuple((g, c) for g in groups for c in every if own is None or own[c] == g)
    if not cells:
        return None
    stratum, known = _strata(p), np.flatnonzero(names != UNKNOWN)
    rows = known[np.argsort(stratum[known], kind="stable")]
    ranks = _Ranks.of(score[rows], stratum[rows])
    code = np.unique(names[rows], return_inverse=True)
    place = {g: i for i, g in enumerate(code[0])}
    picked = [(place[g], c) for g, c in cells]
    values = ranks.auroc(code[1][:, None], picked)[:, 0]
    if not np.isfinite(values).all():
        kept = [i for i, v in enumerate(values) if np.isfinite(v)]
        cells = tuple(cells[i] for i in kept)
        picked, values = [picked[i] for i in kept], values[kept]
        if not cells:
            return None
    shuffles = _Shuffles.of(p, rows, stratum[rows], code[1])
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, n, _BLOCK):
        drawn = [shuffles.draw(rng) for _ in range(min(_BLOCK, n - start))]
        parts.append(ranks.auroc(np.stack(drawn, axis=1), picked))
    permuted = np.concatenate(parts, axis=1)
    member = {g: np.where(names == UNKNOWN, np.nan, (names == g).astype(float)) for g in groups}
    chance = _max_t(values, permuted)
    return _Table(attribute, score, member, stratum, counts, cells, values, chance)


def _patients(p: Predictions, names: npt.NDArray[Any]) -> dict[str, tuple[int, int]]:
    """Known group -> patients with a row inside it, patients with none inside."""
    unit, count = patient_index(p)
    known = np.bincount(unit[names != UNKNOWN], minlength=count) > 0
    found = {}
    for group in sorted(set(names.tolist()) - {UNKNOWN}):
        inside = np.bincount(unit[names == group], minlength=count) > 0
        found[group] = int(inside.sum()), int((known & ~inside).sum())
    return found


def _strata(p: Predictions) -> Indices:
    """[N]: rows with equal labels (a missing one is a label of its own), of the same model."""
    part = np.unique(p.part, return_inverse=True)[1]
    table = np.column_stack([part, np.nan_to_num(p.target, nan=-1)])
    return np.unique(table, axis=0, return_inverse=True)[1].ravel()


def _max_t(values: Floats, permuted: Floats) -> float:
    """Share of permutations whose largest standardized deviation reaches the observed one."""
    spread = np.nanstd(permuted, axis=1)
    spread = np.where(spread > 0, spread, np.inf)[:, None]
    observed = np.abs((values[:, None] - 0.5) / spread).max()
    each = np.nan_to_num(np.abs((permuted - 0.5) / spread)).max(axis=0)
    return float((1 + (each >= observed - 1e-9).sum()) / (1 + len(each)))


@dataclass(frozen=True)
class _Ranks:
    """Ranks inside strata, once: under any grouping an AUROC is then a sum of them."""

    rank: Floats  # [K, N], mid-ranks from 1 inside each stratum
    start: Indices  # first row of each stratum; rows are sorted by stratum
    size: Indices

    @staticmethod
    def of(score: Floats, stratum: Indices) -> _Ranks:
        """Of rows that are sorted by stratum: scores [N, K], strata [N]."""
        start = np.flatnonzero(np.r_[True, stratum[1:] != stratum[:-1]])
        size = np.diff(np.r_[start, len(stratum)])
        rank = np.zeros(score.shape[::-1])
        for column, values in enumerate(score.T):
            order = np.lexsort((values, stratum))
            ends = np.r_[values[order][1:] != values[order][:-1], True]
            ends[np.r_[start[1:], len(stratum)] - 1] = True
            last = np.flatnonzero(ends)
            first = np.r_[0, last[:-1] + 1]
            middle = np.repeat((first + last) / 2 + 1, last - first + 1)
            rank[column, order] = middle - np.repeat(start, size)
        return _Ranks(rank, start, size)

    def auroc(self, code: Indices, cells: Sequence[tuple[int, int]]) -> Floats:
        """Stratified AUROC of each cell under each grouping: [cells, B]; NaN without pairs.

        Args:
            code: group of each row [N, B].
            cells: (group, column).
        """
        found = np.full((len(cells), code.shape[1]), np.nan)
        for group in sorted({g for g, _ in cells}):
            member = (code == group).astype(np.float64)
            inside = np.add.reduceat(member, self.start, axis=0)
            pairs = (inside * (self.size[:, None] - inside)).sum(axis=0)
            least = (inside * (inside + 1) / 2).sum(axis=0)
            total = self.rank @ member
            for i, (g, column) in enumerate(cells):
                if g == group:
                    with np.errstate(invalid="ignore", divide="ignore"):
                        found[i] = np.where(pairs > 0, (total[column] - least) / pairs, np.nan)
        return found


@dataclass(frozen=True)
class _Shuffles:
    """Permutes an attribute over patients of the same labels.

    Where each patient has one value (sex), values are permuted among patients with the same
    positive labels. Where a patient's images differ (view), all of a patient's values go together
    to another patient with as many images of the same labels.
    """

    blocks: tuple[Indices, ...]  # each [patients, rows of one]: exchangeable along the first axis
    unit: Indices | None  # patient of each row, where values are patients' (blocks hold patients)
    value: Indices

    @staticmethod
    def of(p: Predictions, rows: Indices, stratum: Indices, code: Indices) -> _Shuffles:
        """Of some rows [M], their strata and groups."""
        unit = np.unique(p.patient[rows], return_inverse=True)[1]
        count = int(unit.max()) + 1
        low, high = np.full(count, np.iinfo(int).max), np.full(count, -1)
        np.minimum.at(low, unit, code)
        np.maximum.at(high, unit, code)
        if (low == high).all():
            positive = np.zeros((count, p.target.shape[1] + 1))
            for c in range(p.target.shape[1]):
                positive[:, c] = np.bincount(unit[p.target[rows, c] == 1], minlength=count) > 0
            positive[unit, -1] = np.unique(p.part[rows], return_inverse=True)[1]
            pattern = np.unique(positive, axis=0, return_inverse=True)[1].ravel()
            blocks = tuple(np.flatnonzero(pattern == k)[:, None] for k in range(pattern.max() + 1))
            return _Shuffles(blocks, unit, low)
        order = np.lexsort((stratum, unit))
        ends = np.flatnonzero(np.r_[unit[order][1:] != unit[order][:-1], True]) + 1
        alike: dict[tuple[int, ...], list[Indices]] = {}
        for mine in np.split(order, ends[:-1]):
            alike.setdefault(tuple(stratum[mine].tolist()), []).append(mine)
        return _Shuffles(tuple(np.stack(each) for each in alike.values()), None, code)

    def draw(self, rng: np.random.Generator) -> Indices:
        """The group of each row [M] after one permutation."""
        value = self.value.copy()
        for block in self.blocks:
            value[block] = self.value[block[rng.permutation(len(block))]]
        return value if self.unit is None else value[self.unit]
