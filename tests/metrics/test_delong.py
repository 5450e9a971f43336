import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.metrics.delong import components
from autopeft.metrics.intervals import bootstrap, delong_interval, paired
from autopeft.metrics.pairs import pair

seeds = st.integers(0, 2**16)


def by_formula(score, y, unit):
    """Obuchowski (1997) for several readers of the same rows, written from the paper's sums."""
    readers, value = [], []
    for s in score:
        x, z = s[y == 1], s[y == 0]
        wins = (x[:, None] > z) + 0.5 * (x[:, None] == z)
        value.append(wins.mean())
        readers.append((wins.mean(axis=1) - wins.mean(), wins.mean(axis=0) - wins.mean()))
    of_positive, of_negative, patients = unit[y == 1], unit[y == 0], np.unique(unit)
    m, n = len(of_positive), len(of_negative)
    i10, i01, i = len(set(of_positive)), len(set(of_negative)), len(patients)
    found = np.zeros((len(score), len(score)))
    for a, (pa, na) in enumerate(readers):
        for b, (pb, nb) in enumerate(readers):
            for u in patients:
                p, q = of_positive == u, of_negative == u
                found[a, b] += i10 / (i10 - 1) * pa[p].sum() * pb[p].sum() / m**2
                found[a, b] += i01 / (i01 - 1) * na[q].sum() * nb[q].sum() / n**2
                cross = pa[p].sum() * nb[q].sum() + pb[p].sum() * na[q].sum()
                found[a, b] += i / (i - 1) * cross / (m * n)
    return np.array(value), found


def draw(seed, rows, units, ties=1):
    rng = np.random.default_rng(seed)
    unit = np.unique(rng.integers(0, units, rows), return_inverse=True)[1]
    y = rng.permutation([0.0, 1.0] + rng.integers(0, 2, rows - 2).tolist())
    return np.round(rng.normal(size=(2, rows)) + y, ties), y, unit


@settings(deadline=None)
@given(seed=seeds, rows=st.integers(12, 40), ties=st.integers(0, 2), rare=st.booleans())
def test_covariance_equals_the_published_formula(seed, rows, ties, rare):
    score, y, unit = draw(seed, rows, rows // 2, ties)
    y = 1 - y if rare else y  # either side may be the rarer one
    if len(set(unit[y == 1])) < 2 or len(set(unit[y == 0])) < 2:
        return
    found = components([pair(s, y, unit) for s in score], unit.max() + 1)
    value, covariance = by_formula(score, y, unit)
    np.testing.assert_allclose(found.value, value, atol=1e-12)
    np.testing.assert_allclose(found.covariance(), covariance, atol=1e-12)


@settings(deadline=None)
@given(seed=seeds)
def test_with_one_image_a_patient_it_is_delong(seed):
    score, y, _ = draw(seed, 30, 30)
    if not 2 <= y.sum() <= 28:
        return
    placed = []
    for s in score:
        x, z = s[y == 1], s[y == 0]
        wins = (x[:, None] > z) + 0.5 * (x[:, None] == z)
        placed.append((wins.mean(axis=1), wins.mean(axis=0)))
    (xa, za), (xb, zb) = placed
    expected = np.cov(xa, xb) / y.sum() + np.cov(za, zb) / (30 - y.sum())
    found = components([pair(s, y, np.arange(30)) for s in score], 30)
    np.testing.assert_allclose(found.covariance(), expected, atol=1e-12)


def test_rows_of_unknown_label_change_nothing():
    score, y, unit = draw(0, 40, 20)
    known = components([pair(s, y, unit) for s in score], 25).covariance()
    score = np.concatenate([score, np.zeros((2, 9))], axis=1)
    y, unit = np.append(y, np.full(9, np.nan)), np.append(unit, np.arange(16, 25))
    again = components([pair(s, y, unit) for s in score], 25).covariance()
    np.testing.assert_array_equal(known, again)


def test_parts_are_weighed_as_the_auroc_weighs_them():
    """The covariance is the mean square of what each patient adds: checked by leaving them out."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(150), 2)
    y, part = (rng.random(300) < 0.4).astype(float), unit % 3
    score = rng.normal(size=300) + y + 5 * part
    one = np.ones((150, 151))
    np.fill_diagonal(one[:, :150], 0)
    cell = pair(score, y, unit, part)
    values = cell.auroc(one)
    jackknife = 149 / 150 * ((values[:150] - values[:150].mean()) ** 2).sum()
    found = components([cell], 150)
    assert found.value[0] == pytest.approx(values[150])
    assert found.covariance()[0, 0] == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize("side", [0.0, 1.0])
def test_one_patient_with_a_whole_side_has_no_variance(table, side):
    y = np.array([side] * 4 + [1 - side] * 6)
    patient = np.array([0] * 4 + [1, 2, 3, 4, 5, 6])
    p = table(np.arange(10.0) % 4, y, patient=patient)
    assert delong_interval(p) is None
    assert delong_interval(table(p.score, np.ones((10, 1)))) is None
    assert delong_interval(table(p.score, p.target, patient=[0] * 10)) is None


def clustered(table, seed, patients=300, images=3, classes=2):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    y = (rng.random((patients, classes)) < 0.4)[patient].astype(float)
    level = rng.normal(size=(patients, classes))[patient]
    first, second = (level + rng.normal(size=y.shape) + y * d for d in (1.2, 0.8))
    return table(first, y, patient=patient), table(second, y, patient=patient)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_bootstrap_over_patients(table, seed):
    a, b = clustered(table, seed)
    for by_formula, resampled in (
        (delong_interval(a), bootstrap(a, n=1000)),
        (delong_interval(a, b), paired(a, b, n=1000)),
        (delong_interval(a, classes=("c1",)), bootstrap(a, "auroc:c1", n=1000)),
    ):
        assert by_formula.value == pytest.approx(resampled.value, abs=1e-12)
        assert by_formula.se == pytest.approx(resampled.se, rel=0.12)
        width = resampled.high - resampled.low
        for bound in ("low", "high", "floor"):
            gap = getattr(by_formula, bound) - getattr(resampled, bound)
            assert abs(gap) < 0.12 * width, bound
    rows = table(a.score, a.target)
    assert delong_interval(rows).se < 0.75 * delong_interval(a).se


def test_a_model_is_exactly_as_good_as_itself(table):
    a, _ = clustered(table, 0, patients=40)
    same = delong_interval(a, a)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-9)
    with pytest.raises(ValueError, match="same rows"):
        delong_interval(a, a.take(np.arange(10)))
