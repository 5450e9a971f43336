"""An interval for the range of several group values, by inverting a test of "the range is d".

The highest minus the lowest of some noisy values is biased upwards and its bootstrap percentile
interval never contains 0. Here every d that a test does not reject is in the interval, so that 0
is in it exactly when the test of equal groups does not reject at the same level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from autopeft.evaluation import Floats

_SWEEPS = 60
_GRID = 6  # points on either side of the estimate at which the critical value is simulated


def wald(value: Floats, covariance: Floats) -> float:
    """Wald statistic of "all values are equal": chi-square with G - 1 degrees of freedom.

    The squared distance, in standard errors, to the nearest point at which all are equal.

    Args:
        value: [G].
        covariance: [G, G], positive definite.
    """
    return float(value @ _centered(covariance) @ value)


def widest_error(covariance: Floats) -> float:
    """Standard error of the difference of the two groups that are compared worst."""
    variance = np.diag(covariance)
    widest = (variance[:, None] + variance - 2 * covariance).max()
    return float(np.sqrt(widest))


def detectable(covariance: Floats, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest gap that the test of equal groups finds with the given power.

    Between whichever two groups it lies: of the pair with the largest error, all other groups
    being where they help least. From the noncentral chi-square distribution.
    """
    from scipy.special import chdtri, chndtrinc

    df = len(covariance) - 1
    noncentrality = float(chndtrinc(chdtri(df, alpha), df, 1 - power))
    return widest_error(covariance) * float(np.sqrt(noncentrality))


def range_interval(
    value: Floats, covariance: Floats, alpha: float = 0.05, n: int = 1000
) -> tuple[float, float]:
    """Interval of the true highest minus lowest value, given [G] estimates and their covariance.

    d is kept while T(d), the squared distance in standard errors between the estimates and the
    nearest values whose range is exactly d, is not among the largest ``alpha`` of the T(d) of
    normal estimates drawn around true values of that range (test inversion with the
    likelihood-ratio ordering of Feldman & Cousins 1998). These true values are the nearest ones
    with every group moved to the nearer end of the range. T(0) is the Wald statistic, and its
    critical value the exact chi-square one.

    Args:
        value: [G], at least two groups.
        covariance: [G, G], positive definite.
        alpha: 1 - coverage.
        n: draws for the critical values; they are fixed, so the answer is a function of the data.

    Returns:
        Lower and upper bound; the lower one is exactly 0 when "all equal" is not rejected.
    """
    tester = RangeTest.of(covariance, alpha, n)
    observed = float(np.ptp(value))
    scale = widest_error(covariance)
    top = observed + scale * 1.05 * tester.first**0.5  # beyond Scheffe's bound nothing is kept
    low = 0.0
    if wald(value, covariance) > tester.first:
        low = _crossing(tester, value, observed, 0.0)
    return low, _crossing(tester, value, observed, top)


@dataclass(frozen=True)
class RangeTest:
    """Tests "the range of the true values is d", for one covariance.

    Attributes:
        form: [G, G], quadratic form that ignores what all groups share.
        weight: [G], how the shared level is estimated.
        draws: [n, G], normal errors with the covariance.
        first: critical value at d = 0, chi-square with G - 1 degrees of freedom.
        scale: first / its simulated value: takes most of the simulation's noise out.
        alpha: level.
    """

    form: Floats
    weight: Floats
    draws: Floats
    first: float
    scale: float
    alpha: float

    @staticmethod
    def of(covariance: Floats, alpha: float = 0.05, n: int = 1000) -> RangeTest:
        """The test for a covariance [G, G]."""
        from scipy.special import chdtri

        inverse = np.linalg.inv(covariance)
        form, weight = _centered(covariance), inverse.sum(axis=0) / inverse.sum()
        draws = _normals(n, len(covariance)) @ np.linalg.cholesky(covariance).T
        first = float(chdtri(len(covariance) - 1, alpha))
        simulated = np.quantile(np.einsum("bg,gh,bh->b", draws, form, draws), 1 - alpha)
        return RangeTest(form, weight, draws, first, first / float(simulated), alpha)

    def distance(self, value: Floats, d: float) -> tuple[Floats, Floats]:
        """T(d) [B] of estimates [B, G], and the nearest values [B, G] whose range is d.

        Estimates that range wider than d are drawn together: one problem in the box from 0 to d.
        Others are pushed apart: one problem for each ordered pair (highest, lowest), of which
        the nearest is taken.
        """
        groups = value.shape[1]
        found, nearest = np.empty(len(value)), np.empty(value.shape)
        wide = np.ptp(value, axis=1) >= d
        pairs = [(i, j) for i in range(groups) for j in range(groups) if i != j]
        lower, upper = np.zeros((len(pairs), 1, groups)), np.full((len(pairs), 1, groups), d)
        for k, (i, j) in enumerate(pairs):
            lower[k, 0, i], upper[k, 0, j] = d, 0.0
        box = np.zeros((1, 1, groups))
        for rows, low, high in ((wide, box, box + d), (~wide, lower, upper)):
            if rows.any():
                found[rows], nearest[rows] = self._boxed(value[rows], low, high)
        return found, nearest

    def _boxed(self, x: Floats, lower: Floats, upper: Floats) -> tuple[Floats, Floats]:
        """Distance [B] and nearest point [B, G] over boxes [K, 1, G], up to a shared level.

        A quadratic problem in a box, solved by going through the coordinates in turn.
        """
        v = np.clip(x - x.mean(axis=1, keepdims=True) + upper.max() / 2, lower, upper)
        for _ in range(_SWEEPS):
            before = v.copy()
            for k in range(x.shape[1]):
                step = ((x - v) @ self.form[:, k]) / self.form[k, k]
                v[..., k] = np.clip(v[..., k] + step, lower[..., k], upper[..., k])
            if np.abs(v - before).max() < 1e-6 * max(float(upper.max()), 1e-6):
                break
        rest = x - v
        every = ((rest @ self.form) * rest).sum(axis=2)
        best, rows = every.argmin(axis=0), np.arange(len(x))
        nearest = v[best, rows] + (rest[best, rows] @ self.weight)[:, None]
        return every[best, rows], nearest

    def critical(self, nearest: Floats, d: float) -> float:
        """1 - alpha quantile of T(d) for true values like ``nearest`` [G], of range d.

        Estimates are spread wider than the truth, and T(d) is largest where groups are tied at an
        end: drawn around the estimates themselves (hybrid resampling, Chuang & Lai 2000) the
        interval held the truth in .93 of draws with three of four groups tied. So groups count as
        tied with the nearer end, as nearly binding restrictions count as binding in generalized
        moment selection (Andrews & Soares 2010).
        """
        if d == 0:
            return self.first
        lowest, highest = nearest.min(), nearest.max()
        tied = np.where(nearest - lowest > d / 2, highest, lowest)
        drawn, _ = self.distance(tied + self.draws, d)
        return float(np.quantile(drawn, 1 - self.alpha)) * self.scale

    def keeps(self, value: Floats, d: float) -> bool:
        """Whether estimates [G] do not contradict a range of d."""
        distance, nearest = self.distance(value[None], d)
        return float(distance[0]) <= self.critical(nearest[0], d)


def _crossing(tester: RangeTest, value: Floats, inside: float, outside: float) -> float:
    """Where T(d) first exceeds its critical value on the way from ``inside`` to ``outside``."""
    grid = np.linspace(inside, outside, _GRID + 1)
    limits = []
    for d in grid:
        _, nearest = tester.distance(value[None], float(d))
        limits.append(tester.critical(nearest[0], float(d)))
    order = np.argsort(grid)

    def kept(d: float) -> bool:
        limit = np.interp(d, grid[order], np.array(limits)[order])
        return bool(tester.distance(value[None], d)[0][0] <= limit)

    for _ in range(30):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if kept(middle) else (inside, middle)
    return inside


def _centered(covariance: Floats) -> Floats:
    inverse = np.linalg.inv(covariance)
    row = inverse.sum(axis=0)
    return inverse - np.outer(row, row) / row.sum()  # type: ignore[no-any-return]


@lru_cache(maxsize=16)
def _normals(n: int, groups: int) -> Floats:
    half = np.random.default_rng(0).normal(size=((n + 1) // 2, groups))
    return np.concatenate([half, -half])[:n]
