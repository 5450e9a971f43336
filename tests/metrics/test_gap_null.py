from dataclasses import replace

import numpy as np
import pytest

from autopeft.metrics import gap_null
from autopeft.metrics.gap_null import null_gap
from autopeft.metrics.groups import Scored

GROUPS = ("F", "M")
SCORED = Scored("sex", GROUPS, (0,))


def simulate(table, seed=0, patients=160, images=3, classes=1):
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(patients), images)
    y = (rng.random((patients, classes)) < 0.4).astype(float)[unit]
    sex = np.array(GROUPS, dtype=object)[np.arange(patients) % 2][unit]
    score = rng.normal(size=y.shape) + y
    return table(score, y, patient=unit, groups={"sex": sex})


def test_it_is_the_mean_of_brute_force_permutations(table):
    p = simulate(table)
    rng, found = np.random.default_rng(1), []
    first = np.arange(0, len(p.patient), 3)
    for _ in range(400):
        sex = p.groups["sex"][first].copy()
        for label in (0, 1):
            rows = np.flatnonzero(p.target[first, 0] == label)
            sex[rows] = sex[rng.permutation(rows)]
        q = replace(p, groups={"sex": np.repeat(sex, 3)})
        values = []
        for group in GROUPS:
            rows = q.groups["sex"] == group
            up, down = (q.score[rows & (q.target[:, 0] == label), 0] for label in (1, 0))
            values.append((up[:, None] > down).mean())
        found.append(np.ptp(values))
    assert null_gap(p, SCORED, 400).of_means == pytest.approx(np.mean(found), rel=0.12)


def test_it_does_not_know_the_groups(table):
    """A huge gap leaves the value without bias where it was, and so does an equal shift."""
    p = simulate(table)
    woman = (p.groups["sex"] == "F")[:, None]
    noise = np.random.default_rng(5).normal(size=woman.shape)
    hurt = replace(p, score=np.where(woman, noise, 3 * p.score))
    assert null_gap(hurt, SCORED).of_means < 0.1
    assert null_gap(p, SCORED) == null_gap(p, SCORED)
    assert null_gap(p, SCORED, seed=1) != null_gap(p, SCORED)


def test_more_patients_less_gap(table):
    few, many = (null_gap(simulate(table, patients=n), SCORED).of_means for n in (80, 1280))
    assert few / many == pytest.approx(4, rel=0.35)


def test_blocks_are_patients_and_keep_their_labels(table):
    p = table(
        np.zeros(6),
        [0, 1, 0, 0, np.nan, 1],
        patient=["a", "a", "b", "b", "c", "c"],
        groups={"sex": ["F", "F", "M", "M", "F", "M"]},
    )
    block, member, pattern = gap_null._blocks(p, SCORED)
    assert block.tolist() == [0, 0, 1, 1, 2, 3]  # c has an image in each group: two blocks
    assert member.tolist() == [0, 1, 0, 1]
    assert pattern.tolist() == [[2], [1], [0], [2]]


def test_rare_patterns_trade_among_equal_numbers_of_findings():
    often = np.array([[1, 1]] * 12 + [[2, 1]] * 3 + [[1, 2]] * 4 + [[2, 2]] * 2)
    stratum = gap_null._strata(often)
    assert len(set(stratum[:12])) == 1
    assert len(set(stratum[12:19])) == 1
    assert len({stratum[0], stratum[12], stratum[19]}) == 3


def test_several_labels(table):
    p = simulate(table, classes=3)
    found = null_gap(p, Scored("sex", GROUPS, (0, 1, 2)), 50)
    assert 0 < found.of_means < found.of_labels < 0.2
