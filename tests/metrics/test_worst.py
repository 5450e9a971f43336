"""A worst group is better off when every group is, not when the smallest of noisy values is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from autopeft.evaluation import Predictions
from autopeft.metrics.intervals import paired, verdict
from autopeft.metrics.worst import Floor, worst_group_floor, worst_group_word

GROUPS = ("a", "b", "c", "d")
COUNTED = {"g": GROUPS}


def tables(rng, aurocs, shared=0.7, positives=75, negatives=225):
    """Two models on the same patients: binormal scores with the AUROCs of each model's groups."""
    y = np.tile(np.repeat([1.0, 0.0], [positives, negatives]), len(GROUPS))
    group = np.repeat(np.array(GROUPS, dtype=object), positives + negatives)
    noise = rng.normal(size=len(y)) * shared**0.5
    found = []
    for wanted in aurocs:
        shift = np.repeat([norm.ppf(a) * 2**0.5 for a in wanted], positives + negatives)
        score = noise + rng.normal(size=len(y)) * (1 - shared) ** 0.5 + shift * y
        found.append(
            Predictions(
                score=score[:, None],
                target=y[:, None],
                patient=np.arange(len(y)),
                part=np.zeros(len(y)),
                groups={"g": group},
                classes=("x",),
                kind="binary",
                split="test",
            )  # fmt: skip
        )
    return found


def claims(aurocs, count, seed=0):
    """How often the lowest values alone say "better", and how often every group does."""
    rng, alone, every = np.random.default_rng(seed), 0, 0
    worst = GROUPS[int(np.argmin(aurocs[1]))]
    for _ in range(count):
        winner, opponent = tables(rng, aurocs)
        gap = paired([winner], [opponent], "worst_group_auroc", n=300, counted=COUNTED)
        word = verdict(gap, 0.01)
        alone += word == "better"
        floor = worst_group_floor(winner, opponent, worst, COUNTED, n=300)
        every += worst_group_word(word, floor, 0.01) == "better"
    return alone / count, every / count


def test_an_unequal_winner_is_not_called_better_for_its_worst_group():
    alone, every = claims([(0.84, 0.89, 0.89, 0.89), (0.845,) * 4], 80)
    assert alone > 0.1  # at a nominal 2.5%
    assert every <= 0.05


def test_a_real_gain_is_seen():
    alone, every = claims([(0.9,) * 4, (0.78, 0.88, 0.88, 0.88)], 20)
    assert alone > 0.8
    assert every > 0.8


def test_the_bound_is_that_of_the_group_nearest_to_the_opponents_worst():
    winner, opponent = tables(np.random.default_rng(1), [(0.7, 0.95, 0.95, 0.95), (0.8,) * 4])
    floor = worst_group_floor(winner, opponent, "b", COUNTED, n=200)
    assert (floor.group, floor.against) == ("a", "b")
    assert floor.low < -0.05
    assert worst_group_floor(winner, opponent, "z", COUNTED) is None


@pytest.mark.parametrize(
    ("word", "low", "said"),
    [
        ("better", 0.001, "better"),
        ("better", -0.005, "not worse"),
        ("better", -0.02, "cannot tell"),
        ("not worse", 0.001, "not worse"),
        ("not worse", -0.02, "cannot tell"),
        ("worse", 0.5, "worse"),
        ("cannot tell", 0.5, "cannot tell"),
    ],
)
def test_words_need_every_group(word, low, said):
    assert worst_group_word(word, Floor("a", "b", low), 0.01) == said
    if word in ("better", "not worse"):
        assert worst_group_word(word, None, 0.01) == "cannot tell"
