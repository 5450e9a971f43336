import numpy as np
import pytest

from autopeft.metrics.bands import bands, joint
from autopeft.metrics.intervals import bootstrap, paired

GROUPS = {"site": ("a", "b", "c", "d")}
NAMES = tuple(f"auroc:{g}" for g in GROUPS["site"])


def simulate(table, seed, patients=240, gain=0.0):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    y = (rng.random(patients) < 0.4)[patient].astype(float)
    score = rng.normal(size=patients)[patient] + rng.normal(size=2 * patients) + (1 + gain) * y
    site = np.array(GROUPS["site"])[patient % 4]
    return table(score, y, patient=patient, groups={"site": site})


def test_one_metric_alone_is_its_t_interval(table):
    p = simulate(table, 0)
    (found,) = bands(p, ["auroc"], n=400).values()
    alone = bootstrap(p, "auroc", n=400)
    assert (found.value, found.se) == pytest.approx((alone.value, alone.se))
    low, value, high = (np.log(v / (1 - v)) for v in (found.low, found.value, found.high))
    assert high - value == pytest.approx(value - low)
    assert found.high - found.value < found.value - found.low
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert found.low < found.floor < found.value


def test_one_factor_for_all_wider_than_each_narrower_than_bonferroni(table):
    p = simulate(table, 0)
    found = bands(p, NAMES, n=600, counted=GROUPS)
    each = {name: bootstrap(p, name, n=600, counted=GROUPS) for name in NAMES}
    for i in found.values():  # Bonferroni: 2.50; each by itself: 1.96
        assert 2.2 < (i.high - i.low) / 2 / i.se < 3.1
    differences = bands(p, NAMES, simulate(table, 0, gain=0.3), n=600, counted=GROUPS)
    factors = [(i.high - i.value) / i.se for i in differences.values()]
    assert factors == pytest.approx([factors[0]] * 4)
    assert 2.2 < factors[0] < 2.8
    for name in NAMES:
        assert found[name].value == pytest.approx(each[name].value)
        assert found[name].se == pytest.approx(each[name].se)
        assert found[name].patients == 240


def test_the_same_twice_costs_nothing(table):
    p = simulate(table, 0)
    once = bands(p, ["auroc"], n=200)["auroc"]
    p2 = table(np.repeat(p.score, 2, axis=1), np.repeat(p.target, 2, axis=1), patient=p.patient)
    twice = bands(p2, ["auroc:c0", "auroc:c1"], n=200)
    assert [i.to_dict() for i in twice.values()] == [pytest.approx(once.to_dict())] * 2


def test_differences_are_paired(table):
    a, b = simulate(table, 1, gain=0.4), simulate(table, 1)
    found = bands(a, NAMES, b, n=300, counted=GROUPS)
    for name in NAMES:
        alone = paired(a, b, name, n=300, counted=GROUPS)
        assert (found[name].value, found[name].se) == pytest.approx((alone.value, alone.se))
    same = bands(a, NAMES, a, n=50, counted=GROUPS)
    assert all((i.value, i.low, i.high, i.se) == (0, 0, 0, 0) for i in same.values())
    repeats = bands([a, b], NAMES, [b, a], n=50, counted=GROUPS)
    assert all(i.value == pytest.approx(0, abs=1e-12) for i in repeats.values())
    with pytest.raises(ValueError, match="same rows"):
        bands(a, NAMES, simulate(table, 2), counted=GROUPS)


def test_what_is_undefined_neither_shows_nor_widens(table):
    p = simulate(table, 0)
    target = np.concatenate([p.target, np.ones_like(p.target)], axis=1)
    score = np.repeat(p.score, 2, axis=1)
    found = bands(table(score, target, patient=p.patient), ["auroc:c0", "auroc:c1"], n=100)
    assert found["auroc:c1"] is None
    assert found["auroc:c0"].to_dict() == bands(p, ["auroc"], n=100)["auroc"].to_dict()
    rare = np.eye(
        60, 3
    )  # each label in one patient: all three are drawn in a quarter of resamples
    found = bands(table(np.random.default_rng(0).normal(size=(60, 3)), rare), ["auroc"], n=200)
    assert found == {"auroc": None}
    one_patient = table([0.1, 0.4, 0.3], [0, 1, 1], patient=["x"] * 3)
    assert bands(one_patient, ["auroc"]) == {"auroc": None}
    with pytest.raises(ValueError, match="auroc:Nobody"):
        bands(p, ["auroc:Nobody"])


def test_joint_by_hand():
    rng = np.random.default_rng(0)
    value, drawn = np.array([0.5, 2.0]), rng.normal([0.5, 2.0], [1.0, 3.0], (500, 2))
    drawn[7, 0] = np.nan
    low, high, floor, se = joint(value, drawn, 0.1)
    assert se[0] == pytest.approx(np.std(np.delete(drawn[:, 0], 7), ddof=1))
    t = (drawn - value) / se
    wide = np.quantile(np.nanmax(np.abs(t), axis=1), 0.9)
    np.testing.assert_allclose(high - value, wide * se)
    np.testing.assert_allclose(value - low, wide * se)
    t[7, 0] = 0
    np.testing.assert_allclose(value - floor, np.quantile(t.max(axis=1), 0.9) * se)


def test_joint_on_the_logit_scale():
    rng = np.random.default_rng(0)
    drawn = 1 / (1 + np.exp(-rng.normal([1.0, 3.0], [0.3, 0.8], (500, 2))))
    value = 1 / (1 + np.exp(-np.array([1.0, 3.0])))
    moved = np.log(drawn / (1 - drawn))
    moved_bounds = joint(np.array([1.0, 3.0]), moved, 0.1)[:3]
    found = joint(value, drawn, 0.1, np.array([True, True]))
    for got, expected in zip(found[:3], moved_bounds, strict=True):
        np.testing.assert_allclose(got, 1 / (1 + np.exp(-expected)))
    np.testing.assert_allclose(found[3], drawn.std(axis=0, ddof=1))
    mixed = joint(np.array([value[0], 3.0]), np.stack([drawn[:, 0], moved[:, 1]], 1), 0.1,
                  np.array([True, False]))  # fmt: skip
    np.testing.assert_allclose(mixed[0], [found[0][0], moved_bounds[0][1]])


def test_a_perfect_value_lies_in_its_band(table):
    p = table(np.arange(40.0), np.arange(40) >= 20)
    (found,) = bands(p, ["auroc"], n=50).values()
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.99 < found.low <= 1.0


@pytest.mark.slow
def test_joint_coverage(table):
    """Four groups with one true value: all four inside in 95% of tables, unlike four by four."""
    from scipy.special import ndtr

    truth, jointly, alone = ndtr(1 / 2), 0, 0
    for seed in range(200):
        p = simulate(table, seed, patients=480)
        found = bands(p, NAMES, n=300, counted=GROUPS).values()
        jointly += all(i.low <= truth <= i.high for i in found)
        each = (bootstrap(p, name, n=300, counted=GROUPS) for name in NAMES)
        alone += all(i.low <= truth <= i.high for i in each)
    assert 0.90 <= jointly / 200 <= 0.99
    assert alone / 200 < 0.90
