"""What the winner owes to fine-tuning, and what to its sampling and loss.

Two more candidates are trained beside the winner, with the same seeds: the winner without its
levers (plain order, plain loss), and a linear probe that reads where the winner reads and keeps
the levers that a probe has. The paired difference to each says what that part contributed. They
are no entrants: neither can win or be the contrast's opponent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autopeft.backbones.facts import Facts
from autopeft.candidate import Candidate, Train
from autopeft.evaluation import Predictions
from autopeft.methods import canonical
from autopeft.metrics.intervals import Interval, paired, recipe_interval

PLAIN, PROBE = "winner_plain", "winner_probe"  # names in predictions.csv
LEVERS = ("sampling", "loss", "group_dro", "label_smoothing")
_OFF = Train()


def levers(candidate: Candidate) -> tuple[str, ...]:
    """The levers that a candidate uses, in plain words: ``sampling by label x group`` ..."""
    train, found = candidate.train, []
    if train.sampling != _OFF.sampling:
        found.append(f"sampling by {train.sampling.replace('_x_', ' x ')}")
    if train.loss != _OFF.loss:
        found.append(f"{train.loss} loss")
    if train.group_dro:
        found.append("group DRO")
    if train.label_smoothing:
        found.append(f"label smoothing {train.label_smoothing:g}")
    return tuple(found)


def ablations(candidate: Candidate, facts: Facts, strength: float) -> list[tuple[str, Candidate]]:
    """The candidates to be trained beside a winner, by name; none twice, none that it is itself.

    Args:
        candidate: the winner's.
        facts: the backbone's.
        strength: the L2 strength of the linear probe, as chosen inside train.
    """
    found = []
    if levers(candidate):
        off = {name: getattr(_OFF, name) for name in LEVERS}
        found.append((PLAIN, replace(candidate, train=replace(candidate.train, **off))))
    if candidate.strata:
        raw = {
            "method": "linear_probe",
            "readout": vars(candidate.readout),
            "sampling": candidate.train.sampling,
            "loss": candidate.train.loss,
            "weight_decay": strength,
        }
        found.append((PROBE, canonical(raw, facts)))
    return found


@dataclass(frozen=True)
class Contribution:
    """What one part of the winner adds.

    Attributes:
        part: ``fine-tuning``, or the levers in words.
        against: the model without it: ``winner_plain`` or ``winner_probe``.
        metric: what is compared.
        interval: of winner minus that model, over patients; None = cannot be computed.
    """

    part: str
    against: str
    metric: str
    interval: Interval | None

    @property
    def sentence(self) -> str:
        """In fixed words, with the interval."""
        metric = self.metric.replace("_", " ").replace("auroc", "AUROC")
        if self.interval is None or not self.interval.enough:
            return f"{self.part}: cannot tell what it adds to the {metric}"
        i = self.interval
        size = f"{i.value:+.3f} ({i.low:+.3f} to {i.high:+.3f}), mean of fresh trainings"
        if i.low > 0:
            return f"{self.part}: adds to the {metric}, {size}"
        if i.high < 0:
            return f"{self.part}: costs {metric}, {size}"
        return f"{self.part}: not shown to change the {metric}, {size}"


def contributions(
    candidate: Candidate,
    winner: Sequence[Predictions],
    others: Mapping[str, Sequence[Predictions]],
    metric: str,
    counted: Mapping[str, Sequence[str]] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> list[Contribution]:
    """Paired differences of the winner to what it is without one of its parts.

    Args:
        candidate: the winner's.
        winner: its repeats on one split.
        others: repeats, on the same rows and of the same seeds, of the names that ``ablations``
            gave; others are left out.
        metric: one of ``metrics.intervals.COMPARABLE``.
        counted: attribute -> groups that count.
        labels: attribute -> labels that its groups are scored on.
    """
    parts = {PROBE: "fine-tuning", PLAIN: " and ".join(levers(candidate))}
    return [
        Contribution(
            part,
            name,
            metric,
            _interval(winner, others[name], metric, counted, labels),
        )
        for name, part in parts.items()
        if name in others
    ]


def _interval(
    a: Sequence[Predictions],
    b: Sequence[Predictions],
    metric: str,
    counted: Mapping[str, Sequence[str]] | None,
    labels: Mapping[str, Sequence[str]] | None,
) -> Interval | None:
    """Over patients and seeds where there are three of these: the claim is about the recipe."""
    if len(a) >= 3:
        return recipe_interval(list(a), list(b), metric, counted=counted, labels=labels)
    return paired(list(a), list(b), metric, counted=counted, labels=labels)
