"""What a winner owes to fine-tuning and to its levers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autopeft.ablation import PLAIN, PROBE, ablations, contributions, levers
from autopeft.backbones.describe import random_backbone
from autopeft.evaluation import Predictions
from autopeft.methods import canonical

RAW = {"method": "lora", "blocks": [2, 3], "r": 4, "readout": {"block": 5, "pool": "avg"}}
LEVERS = {"sampling": "label_x_group", "loss": "focal", "group_dro": True, "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def facts():
    return random_backbone("test_vit", 32).facts


def scored(quality, seed=0):
    rng = np.random.default_rng(9)
    y = (rng.random(300) < 0.4).astype(np.float64)[:, None]
    noise = np.random.default_rng(seed).normal(size=y.shape)
    return Predictions(
        quality * y + rng.normal(size=y.shape) + 0.2 * noise, y, np.arange(300), np.zeros(300),
        {}, ("c",), "binary", "confirm",
    )  # fmt: skip


def test_each_lever_is_reset_and_nothing_else(facts):
    winner = canonical({**RAW, **LEVERS}, facts)
    found = dict(ablations(winner, facts, 0.3))
    assert set(found) == {PLAIN, PROBE}
    assert found[PLAIN] == canonical(RAW, facts)
    probe = found[PROBE]
    assert (probe.method, probe.readout) == ("linear_probe", winner.readout)
    assert (probe.train.sampling, probe.train.weight_decay) == ("label_x_group", 0.3)
    assert probe.train.loss == "bce"  # a probe has no focal loss
    words = ("sampling by label x group", "focal loss", "group DRO", "label smoothing 0.1")
    assert levers(winner) == words


def test_a_plain_winner_is_not_trained_twice(facts):
    assert [name for name, _ in ablations(canonical(RAW, facts), facts, 0.1)] == [PROBE]
    probe = canonical({"method": "linear_probe", "sampling": "group"}, facts)
    assert [name for name, _ in ablations(probe, facts, 0.1)] == [PLAIN]
    assert ablations(canonical({"method": "linear_probe"}, facts), facts, 0.1) == []


def test_contributions_are_paired_differences(facts):
    winner = canonical({**RAW, "sampling": "group"}, facts)
    mine = [scored(2.0, s) for s in (1, 2, 3)]
    others = {PROBE: [scored(0.5, s) for s in (1, 2, 3)], PLAIN: mine, "lora_r8": mine}
    tuning, sampling = contributions(winner, mine, others, "auroc")
    assert (tuning.part, tuning.against) == ("fine-tuning", PROBE)
    assert tuning.interval.low > 0.05
    assert tuning.sentence.startswith("fine-tuning: adds to the AUROC, +0.")
    assert sampling.part == "sampling by group"
    assert (sampling.interval.value, sampling.interval.low, sampling.interval.high) == (0, 0, 0)
    assert "not shown to change the AUROC, +0.000" in sampling.sentence
    worse = contributions(winner, others[PROBE], {PLAIN: mine}, "auroc")
    assert worse[0].sentence.startswith("sampling by group: costs AUROC, -0.")
    few = [replace(p, target=np.full_like(p.target, np.nan)) for p in mine]
    (unknown,) = contributions(winner, few, {PLAIN: few}, "auroc")
    assert unknown.sentence == "sampling by group: cannot tell what it adds to the AUROC"


def test_seeds_that_differ_widen_what_a_part_is_said_to_add(facts):
    """The claim is about the recipe: three trainings whose scores move are no proof."""
    winner = canonical({**RAW, "sampling": "group"}, facts)
    mine = [scored(shift, s) for shift, s in ((3.0, 1), (0.2, 2), (0.3, 3))]
    plain = [scored(0.2, s) for s in (1, 2, 3)]
    (three,) = contributions(winner, mine, {PLAIN: plain}, "auroc")
    (one,) = contributions(winner, mine[:1], {PLAIN: plain[:1]}, "auroc")
    assert "adds" in one.sentence
    assert "not shown to change" in three.sentence
