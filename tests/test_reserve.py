"""What is kept back of a budget."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from autopeft.reserve import Due, after_search, before_search, kept_back, seconds_for
from autopeft.settings import Settings

THREE = ("linear_probe", "lora_r8", "full")


def task(train=600, confirm=100, test=200):
    sizes = {"train": train, "confirm": confirm, "test": test}
    return SimpleNamespace(counts=lambda split: pd.DataFrame({"images": [sizes[split]]}))


def counts(settings, needs=()):
    found: dict[str, int] = {}
    for due in after_search(settings, needs, task()):
        found[due.what] = found.get(due.what, 0) + due.count
    return found


def test_trainings_are_those_of_the_protocol():
    few = Settings(seeds=2, confirm=3, baselines=THREE)
    assert counts(few) == {
        "finalist": 6, "linear_probe": 1, "lora_r8": 1, "full": 3, "ablation": 4,
        "scoring": 6 * 3,
    }  # fmt: skip
    # By default finalists are screened with 3 seeds, the last two and all baselines get 5.
    usual = counts(Settings(baselines=THREE))
    assert (usual["finalist"], usual["full"], usual["ablation"]) == (3 * 3 + 2 * 2, 6, 10)
    assert counts(Settings(baselines=THREE, confirm=1))["finalist"] == 3 + 2
    assert [(d.what, d.count) for d in before_search(few, ())] == [
        ("linear_probe", 2),
        ("lora_r8", 2),
    ]


def test_folds_take_the_place_of_the_reference_s_seeds():
    few = Settings(seeds=2, confirm=3, baselines=THREE)
    assert [d.count for d in before_search(few, (), folds=True)] == [5, 5]
    after = {d.what: d.count for d in after_search(few, (), task(), folds=True)}
    assert (after["linear_probe"], after["lora_r8"], after["full"]) == (2, 2, 3)  # the seeds


def test_groups_bring_baselines_and_memorization_its_halves():
    plain = counts(Settings(seeds=2))
    grouped = counts(Settings(seeds=2), ("groups",))
    assert set(grouped) - set(plain) == {"lora_r8_group", "lora_r8_group_dro"}
    halves = [d for d in after_search(Settings(), ("memorization",), task()) if d.share == 0.5]
    assert [(d.kind, d.count) for d in halves] == [("adapter", 8), ("adapter", 8), ("full", 8)]


def test_scoring_is_a_share_of_a_training():
    due = after_search(Settings(epochs=3, baselines=THREE), (), task())
    assert next(d for d in due if d.what == "scoring").share == pytest.approx(300 / 1800)


def test_workers_share_trainings_but_not_one_training():
    due = (Due("finalist", "adapter", 6), Due("full", "full", 1))
    each = {"adapter": 10.0, "full": 50.0}
    assert seconds_for(due, lambda d: each[d.kind], 1) == 110
    assert seconds_for(due, lambda d: each[d.kind], 2) == 55
    assert seconds_for(due, lambda d: each[d.kind], 8) == 50


def test_more_is_kept_back_for_more_seeds_and_less_with_more_workers():
    def kept(slots=1, **changes):
        return kept_back(after_search(Settings(**changes), (), task()), 10.0, slots)

    assert kept(seeds=5) > kept(seeds=2)
    assert kept(confirm=5) > kept(confirm=1)
    assert 10.0 < kept(slots=4) < kept()
