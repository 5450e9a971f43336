"""Views: plain view exact, deterministic, independent of the batch, sane; and the hash below."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.training.augment import augment, choose_view, mix, uniform

SMALL = st.integers(0, 2**31)


def smooth(n=6, size=32, channels=1):
    """Pictures with some structure, 0..255."""
    x = np.linspace(0, 3, size)
    k = np.arange(1, n + 1)[:, None, None]
    one = 127 + 100 * np.sin(x[None, :, None] * k) * np.cos(x[None, None, :] * k)
    return torch.from_numpy(np.repeat(one[:, None], channels, 1)).float()


def views(*numbers):
    return np.array(numbers, np.int64)


def test_view_0_is_the_image_bit_for_bit():
    pixels = smooth(4)
    index = np.arange(4)
    assert torch.equal(augment(pixels, index, views(0, 0, 0, 0)), pixels)
    mixed = augment(pixels, index, views(0, 3, 0, 2))
    assert torch.equal(mixed[[0, 2]], pixels[[0, 2]])
    assert not torch.equal(mixed[1], pixels[1])
    assert torch.equal(pixels, smooth(4))  # the batch that came in is untouched


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_does_not_depend_on_its_batch(channels):
    pixels, index = smooth(6, channels=channels), np.array([5, 900, 3, 77, 12, 4])
    number = views(1, 2, 3, 0, 1, 10**15)
    whole = augment(pixels, index, number)
    assert torch.equal(augment(pixels, index, number), whole)
    for some in ([0], [5], [4, 1], [2, 3, 5], [5, 4, 3, 2, 1, 0]):
        part = augment(pixels[some], index[some], number[some])
        assert torch.equal(part, whole[some])


def test_views_of_an_image_differ_and_images_differ_in_a_view():
    pixels = smooth(1).expand(5, -1, -1, -1)
    by_view = augment(pixels, np.zeros(5, int), views(1, 2, 3, 4, 5))
    by_image = augment(pixels, np.arange(5), views(1, 1, 1, 1, 1))
    for out in (by_view, by_image):
        for i in range(5):
            for j in range(i):
                assert (out[i] - out[j]).abs().mean() > 0.5


def test_views_stay_in_range_and_keep_the_mean():
    pixels = smooth(1).expand(300, -1, -1, -1)
    out = augment(pixels, np.arange(300), np.ones(300, np.int64))
    assert out.min() >= 0
    assert out.max() <= 255
    plain, mean = float(pixels.mean()), out.mean(dim=(1, 2, 3))
    assert abs(float(mean.mean()) - plain) < 0.05 * plain
    assert (mean / plain).min() > 0.6
    assert (mean / plain).max() < 1.4


def test_no_view_is_mirrored():
    """A bright left half stays left: the heart's side is a finding."""
    half = torch.zeros(200, 1, 32, 32)
    half[..., :16] = 200
    out = augment(half, np.arange(200), np.full(200, 7))
    assert (out[..., :16].mean(dim=(1, 2, 3)) > 2 * out[..., 16:].mean(dim=(1, 2, 3))).all()
    top = augment(half.transpose(2, 3), np.arange(200), np.full(200, 7))
    assert (top[:, :, :16].mean(dim=(1, 2, 3)) > 2 * top[:, :, 16:].mean(dim=(1, 2, 3))).all()


@given(SMALL, SMALL, SMALL, st.integers(0, 200))
def test_hash_of_an_array_is_the_hash_of_its_numbers(a, b, c, n):
    whole = mix(a, np.arange(n, n + 4), c)
    assert whole.dtype == np.uint64
    assert [int(v) for v in whole] == [int(mix(a, n + i, c)) for i in range(4)]
    assert int(mix(a, b)) != int(mix(b, a)) or a == b
    assert 0 <= float(uniform(a, b, c)) < 1


@given(SMALL, SMALL)
def test_hash_is_spread_evenly(seed, other):
    u = uniform(seed, np.arange(2000), other)
    counts, _ = np.histogram(u, bins=10, range=(0, 1))
    assert abs(u.mean() - 0.5) < 0.05  # seven standard deviations
    assert counts.min() > 100
    assert len(np.unique(u)) == 2000
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.15


def test_hash_is_the_same_for_ever():
    """Splitmix64 by hand, in Python's own integers: cached views must not change meaning."""
    bits = 2**64 - 1

    def plain(*values):
        h = 0x9E3779B97F4A7C15
        for value in values:
            h = ((h ^ value) + 0x9E3779B97F4A7C15) & bits
            h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & bits
            h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & bits
            h ^= h >> 31
        return h

    assert int(mix(1, 2, 3)) == plain(1, 2, 3)
    assert int(mix(2**63, 0)) == plain(2**63, 0)


def test_choose_view():
    image, first = np.arange(4000), np.zeros(4000, int)
    assert (choose_view(1, 0, 0, 0, image, first) == 0).all()
    four = choose_view(4, 0, 0, 0, image, first)
    assert set(four) == {0, 1, 2, 3}
    assert np.bincount(four).min() > 850
    assert np.array_equal(four, choose_view(4, 0, 0, 0, image, first))
    for other in ((4, 1, 0, 0), (4, 0, 1, 0), (4, 0, 0, 1)):
        assert (choose_view(*other, image, first) != four).mean() > 0.6
    assert (choose_view(4, 0, 0, 0, image, first + 1) != four).mean() > 0.6
    new = choose_view(0, 0, 0, 0, image, first)
    assert new.min() > 0  # 0 views a candidate: never the plain one, always another
    assert len(set(new)) == 4000
