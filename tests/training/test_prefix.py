"""Frozen states: computed once, equal to computed anew, under a limit, safe after a crash."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.training import prefix
from autopeft.training.prefix import PrefixStore

ROWS = np.array([3, 5, 8, 9, 20])


class Counting:
    """States that say which image and view they are of; counts what was computed."""

    def __init__(self, dtype=torch.float32):
        self.dtype, self.rows = dtype, []

    def __call__(self, index, view):
        self.rows += list(zip(index.tolist(), view.tolist(), strict=True))
        value = torch.from_numpy(index * 10 + view)
        return (value[:, None, None] + torch.arange(6).view(2, 3) / 8).to(self.dtype)


def make(folder, limit=10**6, key="k", rows=ROWS):
    return PrefixStore(folder, limit, key, rows)


def arrays(*pairs):
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_computed_is_read_again(tmp_path, dtype):
    compute = Counting(dtype)
    index, view = arrays((5, 0), (9, 1), (3, 0), (5, 1))
    first = make(tmp_path).states(4, index, view, compute)
    assert torch.equal(first, Counting(dtype)(index, view))
    assert first.dtype == dtype
    store = make(tmp_path)  # another process
    again = store.states(4, index[::-1].copy(), view[::-1].copy(), compute)
    assert torch.equal(again, first.flip(0))
    assert len(compute.rows) == 4
    assert (store.hits, store.asks) == (4, 4)


def test_boundaries_keys_and_rows_are_kept_apart(tmp_path):
    index, view = arrays((5, 0))
    for number, (boundary, key, rows) in enumerate(
        [(1, "k", ROWS), (2, "k", ROWS), (1, "other weights", ROWS), (1, "k", ROWS[:3])]
    ):
        compute = Counting()
        make(tmp_path, key=key, rows=rows).states(boundary, index, view, compute)
        assert len(compute.rows) == 1, number


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(ROWS.tolist()), st.integers(0, 3)), min_size=1),
        min_size=1,
        max_size=6,
    )
)
def test_any_order_of_batches_gives_the_same_and_computes_each_once(tmp_path_factory, batches):
    folder, compute = tmp_path_factory.mktemp("cache"), Counting()
    for batch in batches:  # a store is opened anew now and then
        store = make(folder)
        for _ in range(2):
            index, view = arrays(*batch)
            found = store.states(1, index, view, compute)
            assert torch.equal(found, Counting()(index, view))
    distinct = {pair for batch in batches for pair in batch}
    assert set(compute.rows) == distinct


def test_two_workers_fill_one_file(tmp_path):
    one, two, compute = make(tmp_path), make(tmp_path), Counting()
    one.states(1, *arrays((3, 0)), compute)
    two.states(1, *arrays((5, 0)), compute)
    assert torch.equal(one.states(1, *arrays((5, 0)), compute), Counting()(*arrays((5, 0))))
    assert compute.rows == [(3, 0), (5, 0)]


def test_what_does_not_fit_is_computed_each_time(tmp_path):
    compute = Counting()
    store = make(tmp_path, limit=130)  # a file of 5 rows takes 5 * 24 + 5 bytes and its headers
    for _ in range(2):
        index, view = arrays((3, 0))
        assert torch.equal(store.states(1, index, view, compute), Counting()(index, view))
        store.states(2, index, view, compute)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*.npy"))
    assert size <= 130 + 2 * 128
    assert compute.rows == [(3, 0)] * 3  # boundary 1 fits, boundary 2 does not
    assert make(tmp_path / "none", limit=0).states(1, index, view, compute).shape == (1, 2, 3)
    assert not list((tmp_path / "none").glob("prefix-*-*"))


def test_files_that_no_run_used_lately_make_room(tmp_path, monkeypatch):
    old, compute = make(tmp_path, limit=500, key="old"), Counting()
    index, view = arrays((3, 0))
    old.states(1, index, view, compute)
    make(tmp_path, limit=500, key="new").states(1, index, view, compute)
    assert len(list(tmp_path.glob("prefix-*-*-*"))) == 1  # the old one may still be in use
    monkeypatch.setattr(prefix, "_RECENT", -1.0)
    make(tmp_path, limit=500, key="new").states(1, index, view, compute)
    [left] = tmp_path.glob("prefix-*-*-*")
    assert left.name.startswith(f"prefix-{make(tmp_path, key='new')._key}-")


def test_an_unfinished_file_is_not_trusted_after_a_power_cut(tmp_path, monkeypatch):
    index, view = arrays((3, 0))
    make(tmp_path).states(1, index, view, Counting())
    whole = np.sort(ROWS)
    make(tmp_path).states(2, whole, np.zeros_like(whole), Counting())
    monkeypatch.setattr(prefix, "_boot", lambda: "another start")
    compute = Counting()
    make(tmp_path).states(1, index, view, compute)
    assert compute.rows == [(3, 0)]
    make(tmp_path).states(2, index, view, compute)
    assert compute.rows == [(3, 0)]  # a whole file was flushed before it was called whole
    said = {json.loads(f.read_text())["boot"] for f in tmp_path.rglob("meta.json")}
    assert said == {"another start", "whole"}


def test_a_full_disk_costs_time_but_no_run(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefix, "reserve", full)
    compute = Counting()
    store, (index, view) = make(tmp_path), arrays((3, 0))
    for _ in range(2):
        assert torch.equal(store.states(1, index, view, compute), Counting()(index, view))
    assert compute.rows == [(3, 0)] * 2
    assert not list(tmp_path.glob("prefix-*-*-*"))


def damage_cut(folder):
    file = folder / "states.npy"
    file.write_bytes(file.read_bytes()[:-20])


def damage_gone(folder):
    (folder / "filled.npy").unlink()


def damage_garbage(folder):
    (folder / "meta.json").write_text("{")


def damage_list(folder):
    (folder / "meta.json").write_text("[]")


@pytest.mark.parametrize("damage", [damage_cut, damage_gone, damage_garbage, damage_list])
def test_a_damaged_file_is_computed_anew(tmp_path, damage):
    index, view = ROWS, np.zeros_like(ROWS)
    make(tmp_path).states(1, index, view, Counting())
    [folder] = tmp_path.glob("prefix-*-*-*")
    damage(folder)
    compute = Counting()
    for _ in range(2):
        found = make(tmp_path).states(1, index, view, compute)
        assert torch.equal(found, Counting()(index, view))
    assert len(compute.rows) == len(ROWS)  # once, and then it is kept again


def test_a_file_that_vanishes_while_it_is_used_harms_nobody(tmp_path):
    import shutil

    store, compute = make(tmp_path), Counting()
    store.states(1, ROWS[:2], np.zeros(2, int), compute)
    [folder] = tmp_path.glob("prefix-*-*-*")
    shutil.rmtree(folder)
    store.states(1, ROWS, np.zeros_like(ROWS), compute)  # the last row would call it whole
    assert not folder.exists()
    found = make(tmp_path).states(1, ROWS, np.zeros_like(ROWS), compute)
    assert torch.equal(found, Counting()(ROWS, np.zeros_like(ROWS)))
