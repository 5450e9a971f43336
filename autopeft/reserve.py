"""What is still to be trained once a search ends, so that a budget can keep the time for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from autopeft import baselines
from autopeft.data.task import Task
from autopeft.parts import FOLDS, HALVES
from autopeft.settings import Settings

Kind = Literal["probe", "adapter", "full"]

# Time of a training of each kind, in trainings of an adapter on all blocks. In forward passes, a
# step of a frozen network with adapters costs 2, with all weights open 3 (docs/inner.md).
TIMES: dict[Kind, float] = {"probe": 0.05, "adapter": 1.0, "full": 1.5}


@dataclass(frozen=True)
class Due:
    """Trainings of one kind that come after the search.

    Attributes:
        what: ``finalist``, a baseline's name, ``ablation`` or ``memorization``.
        kind: what decides how long one takes.
        count: how many there are.
        share: of the train images that each is trained on.
    """

    what: str
    kind: Kind
    count: int
    share: float = 1.0


def after_search(
    settings: Settings, needs: Sequence[str], task: Task, folds: bool = False
) -> tuple[Due, ...]:
    """The trainings between the end of the search and the answer, and the scoring.

    Repeat 0 of a finalist is its trial in the search, the fresh seeds of the reference baselines
    (or their repeat 0, one of five folds) were trained before it. Ablations are the winner
    without its levers and a probe in its place. One image scored in fp32 costs at most about what
    one trained on does.

    Args:
        settings: finalists, seeds, baselines.
        needs: the objective's.
        task: how many images are scored for each that is trained on.
        folds: the search measures on folds.
    """
    wanted = baselines.names(settings.baselines, "groups" in needs)
    screen, final, finalists = settings.screen_seeds, settings.final_seeds, settings.confirm
    due = [Due("finalist", "adapter", finalists * screen + min(2, finalists) * (final - screen))]
    for name in wanted:
        kind = kind_of(name)
        done = 0 if name not in baselines.REFERENCE else 1 if folds else final
        due.append(Due(name, kind, final + 1 - done))
    due += [Due("ablation", "adapter", final), Due("ablation", "probe", final)]
    if "memorization" in needs:
        for name in ("winner", *(n for n in ("lora_r8", "full") if n in wanted)):
            due.append(Due("memorization", kind_of(name), HALVES, 0.5))
            due.append(Due("memorization", kind_of(name), 1))
    images = {s: int(task.counts(s)["images"].iloc[0]) for s in ("train", "confirm", "test")}
    share = (images["confirm"] + images["test"]) / (settings.epochs * images["train"])
    due.append(Due("scoring", "adapter", (finalists + len(wanted)) * (final + 1), share))
    return tuple(due)


def before_search(
    settings: Settings, needs: Sequence[str], folds: bool = False
) -> tuple[Due, ...]:
    """The reference baselines, whose values are frozen before trial 1: seeds, or folds."""
    wanted = baselines.names(settings.baselines, "groups" in needs)
    first = (name for name in wanted if name in baselines.REFERENCE)
    count = FOLDS if folds else settings.final_seeds
    return tuple(Due(name, kind_of(name), count) for name in first)


def kind_of(name: str) -> Kind:
    """What a baseline's training is like."""
    return "probe" if name == "linear_probe" else "full" if name == "full" else "adapter"


def seconds_for(due: Sequence[Due], seconds: Callable[[Due], float], slots: int) -> float:
    """Wall time of some trainings on so many workers.

    Args:
        due: the trainings.
        seconds: of one of them.
        slots: workers; no single training is shared between them.
    """
    each = [seconds(d) for d in due if d.count]
    total = sum(seconds(d) * d.count for d in due)
    return max([total / max(1, slots), *each])


def kept_back(due: Sequence[Due], each: float, slots: int) -> float:
    """Seconds that a running search keeps back for what is due.

    Args:
        due: from ``after_search``.
        each: the longest training so far, in seconds: mostly LoRA on all blocks. One more is kept
            back for what is running when the search stops.
        slots: workers.
    """
    return each + seconds_for(due, lambda d: each * TIMES[d.kind] * d.share, slots)
