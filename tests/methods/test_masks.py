"""The choice of entries against brute force in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.methods import masks

# Few different values, so that ties are the rule.
MATRICES = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)),
                  elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))  # fmt: skip


def first(values, count):
    """Places of the largest values, by a stable sort; ascending."""
    return sorted(np.argsort(-np.asarray(values), kind="stable")[:count].tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(MATRICES, min_size=1, max_size=3), st.data())
def test_the_largest_of_all_tensors_with_ties_by_place(scores, data):
    flat = np.concatenate([s.reshape(-1) for s in scores])
    count = data.draw(st.integers(0, len(flat)))
    found = masks.largest([torch.from_numpy(s) for s in scores], count)
    starts = np.cumsum([0, *(s.size for s in scores)])
    joined = [int(p) + int(o) for places, o in zip(found, starts, strict=False) for p in places]
    assert joined == first(flat, count)


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.integers(1, 7))
def test_the_largest_of_each_row_with_ties_by_place(score, count):
    found = masks.largest_in_rows(torch.from_numpy(score), count).tolist()
    width = score.shape[1]
    want = [r * width + p for r, row in enumerate(score) for p in first(row, min(count, width))]
    assert found == want


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.data())
def test_tiles(down, across, tile, data):
    shape = (down * tile, across * tile)
    score = data.draw(arrays(np.float32, shape, elements=st.floats(-3, 3, width=16)))
    cut = {
        (i, j): score[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile]
        for i in range(down) for j in range(across)
    }  # fmt: skip
    ways = {"mean_abs": lambda t: np.abs(t).mean(), "abs_mean": lambda t: abs(t.mean()),
            "l2": lambda t: np.sqrt((t**2).sum())}  # fmt: skip
    for how, formula in ways.items():
        got = masks.tile_scores(torch.from_numpy(score), tile, how)
        want = [[formula(cut[i, j]) for j in range(across)] for i in range(down)]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    picked = data.draw(st.lists(st.integers(0, down * across - 1), unique=True, min_size=1))
    mask = np.zeros(shape, bool)
    for p in picked:
        i, j = divmod(p, across)
        mask[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile] = True
    places = masks.tile_places(torch.tensor(sorted(picked)), tile, shape[1])
    assert places.tolist() == np.flatnonzero(mask).tolist()


def test_masks_that_grow_are_nested():
    generator = torch.Generator().manual_seed(0)
    taken = [torch.empty(0, dtype=torch.int64) for _ in range(2)]
    for round_ in range(4):
        deltas = [torch.rand(5, 4, generator=generator), torch.rand(7, generator=generator)]
        grown = masks.growing(deltas, taken, 3)
        for old, new in zip(taken, grown, strict=True):
            assert set(old.tolist()) <= set(new.tolist())
        assert sum(map(len, grown)) == 3 * (round_ + 1)
        left = np.concatenate([d.reshape(-1).numpy() for d in deltas])
        for start, old in zip((0, 20), taken, strict=True):
            left[start + old.numpy()] = -np.inf
        fresh = {int(p) for p in grown[0]} | {int(p) + 20 for p in grown[1]}
        before = {int(p) for p in taken[0]} | {int(p) + 20 for p in taken[1]}
        assert fresh - before == set(first(left, 3))
        taken = grown


@pytest.mark.parametrize("count", [0, 1, 24])
def test_equal_scores_go_to_the_first_tensor(count):
    a, b = masks.largest([torch.ones(4, 3), torch.ones(12)], count)
    assert a.tolist() + [12 + p for p in b.tolist()] == list(range(count))
