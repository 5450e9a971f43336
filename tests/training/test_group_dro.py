"""Group DRO: the paper's update written out, rare cells, pieces of a batch, resuming, refusing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import UserError
from autopeft.job import Rows
from autopeft.methods import build, canonical
from autopeft.training.group_dro import NAME, REACH, STEP, GroupWeights, dro_cells
from autopeft.training.loop import Plan, Source, pixels, train_epochs

RAW = {"method": "lora", "blocks": [4, 5], "r": 4, "lr": 3e-3, "head_init": "random"}
RAW |= {"group_dro": True, "sampling": "label_x_group"}
LOSSES = st.lists(st.floats(0, 5), min_size=6, max_size=6)


def rows_of(label, **groups):
    n = len(label)
    return Rows(
        np.arange(n).astype(str),
        np.arange(n),
        np.arange(n).astype(str),
        np.asarray(label, np.float32).reshape(n, -1),
        {k: np.asarray(v) for k, v in groups.items()},
    )


def weights(cell, steps=1000, log_q=None):
    dro = GroupWeights(np.asarray(cell), steps)
    if log_q is not None:
        dro.log_q = torch.tensor(log_q, dtype=torch.float64).log_softmax(0)
    return dro


# ---- cells --------------------------------------------------------------------------------------


def test_cells_are_the_groups_and_with_one_label_the_label_too():
    rows = rows_of([0, 1, 0, 1], sex=["F", "F", "M", "M"])
    assert dro_cells(rows, "binary", "group").tolist() == [0, 0, 1, 1]
    assert len(set(dro_cells(rows, "binary", "label_x_group"))) == 4
    several = rows_of([[0, 1], [1, 1], [0, 0], [1, 0]], sex=["F", "F", "M", "M"])
    assert dro_cells(several, "multilabel", "label_x_group").tolist() == [0, 0, 1, 1]
    two = rows_of([0, 1, 0, 1], sex=["F", "F", "M", "M"], age=["a", "b", "a", "a"])
    assert len(set(dro_cells(two, "binary", "group"))) == 3  # combinations that there are


def test_without_groups_it_is_refused():
    with pytest.raises(UserError, match="group DRO needs groups.*--group"):
        dro_cells(rows_of([0, 1]), "binary", "group")


# ---- the weights --------------------------------------------------------------------------------


@given(LOSSES, st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_with_all_cells_there_it_is_the_paper_s_update(losses, start):
    cell = np.array([0, 1, 2, 0, 1, 2])
    dro = weights(cell, 10_000, start)
    q = dro.q.numpy()
    mean = np.array([np.mean(np.array(losses)[cell == g]) for g in range(3)])
    want = q * np.exp(dro.eta * mean)
    dro.update(torch.from_numpy(cell), torch.tensor(losses), torch.ones(6, dtype=torch.long))
    np.testing.assert_allclose(dro.q.numpy(), want / want.sum(), rtol=1e-6)


def test_the_step_is_the_paper_s_or_reaches_as_far():
    assert weights([0, 1], 10_000).eta == STEP
    assert weights([0, 1], 200).eta == pytest.approx(REACH / 200)


@given(LOSSES)
def test_an_absent_cell_is_neither_starved_nor_fed(losses):
    dro = weights([0, 1, 2], 100, [0.5, -0.5, 1.0])
    cell, ones = torch.tensor([0, 1, 0, 1, 0, 1]), torch.ones(6, dtype=torch.long)
    before = dro.q[2].item()
    dro.update(cell, torch.tensor(losses).double(), ones)
    # The mean in log space moves no weight to first order; a spread takes a little from all.
    assert dro.q[2].item() <= before + 1e-9
    assert dro.q[2].item() >= before * np.exp(-((dro.eta * np.ptp(losses)) ** 2))
    equal = weights([0, 1, 2], 100, [0.5, -0.5, 1.0])
    equal.update(cell, torch.full((6,), 0.7), ones)
    assert equal.q[2].item() == pytest.approx(before)


def test_rows_without_a_label_say_nothing():
    dro = weights([0, 1])
    cell, labelled = torch.tensor([0, 0, 1]), torch.tensor([1, 0, 0])
    got = dro.row_weights(cell, labelled)
    assert got[0] == pytest.approx(0.5)
    dro.update(cell, torch.tensor([1.0, 0.0, 0.0]), labelled)
    assert dro.q.tolist() == pytest.approx([0.5, 0.5])
    dro.update(cell, torch.zeros(3), torch.zeros(3, dtype=torch.long))
    assert dro.q.isfinite().all()


def test_row_weights_sum_q_times_the_cells_means():
    dro = weights([0, 1, 2], 100, [0.3, 1.0, -1.0])
    cell, labelled = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([2, 1, 2, 2, 0, 1])
    losses = torch.tensor([2.0, 1.0, 3.0, 0.5, 0.0, 1.5])
    want = sum(dro.q[g] * losses[cell == g].sum() / labelled[cell == g].sum() for g in range(3))
    assert float((dro.row_weights(cell, labelled) * losses).sum()) == pytest.approx(float(want))


# ---- in training --------------------------------------------------------------------------------


def make(vit, rows, store, raw=RAW, **changes):
    candidate = canonical(raw, vit.facts)
    given = {
        "rows": rows,
        "source": Source(0, lambda index, view: pixels(store, vit.facts, index, view)),
        "kind": "binary", "train": candidate.train, "epochs": 3, "batch_size": 8,
        "micro_batch": 0, "views": 1, "seed": 5, "repeat": 0, "precision": "fp32",
    }  # fmt: skip
    plan = Plan(**given | changes)
    return build(vit, candidate, 1, plan.seed, plan.repeat), plan


def same(a, b):
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_two_stretches_equal_one_bit_for_bit(vit, rows, store):
    whole, plan = make(vit, rows, store)
    loss, end = train_epochs(whole, plan, 0, 3)
    first, plan = make(vit, rows, store)
    _, state = train_epochs(first, plan, 0, 1)
    assert not torch.equal(state[NAME], torch.zeros_like(state[NAME]))

    def again(state):
        second, plan = make(vit, rows, store)
        second.load_tensors({k: v.clone() for k, v in first.tensors().items()})
        return second, train_epochs(second, plan, 1, 3, state)

    second, (second_loss, second_end) = again(state)
    assert same(whole, second)
    assert loss == second_loss
    assert torch.equal(end[NAME], second_end[NAME])
    forgetful, _ = again({k: v for k, v in state.items() if k != NAME})
    assert not same(whole, forgetful)  # q is part of the state


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_pieces_give_the_batch_s_training(vit, rows, store, micro_batch):
    whole, plan = make(vit, rows, store)
    loss, state = train_epochs(whole, plan, 0, 1)
    pieces, plan = make(vit, rows, store, micro_batch=micro_batch)
    parts_loss, parts_state = train_epochs(pieces, plan, 0, 1)
    assert parts_loss == pytest.approx(loss, abs=1e-4)
    torch.testing.assert_close(parts_state[NAME], state[NAME], rtol=0, atol=1e-5)


def test_without_it_nothing_is_saved(vit, rows, store):
    adapted, plan = make(vit, rows, store, {**RAW, "group_dro": False})
    assert NAME not in train_epochs(adapted, plan, 0, 1)[1]


def test_the_worst_served_cell_gains(vit, store):
    """Labels of one group are noise: its loss stays high, and its weight grows."""
    index = np.arange(24)
    label = (index >= 12).astype(np.float32)
    label[::3] = [0, 1, 1, 0, 1, 0, 0, 1]
    sex = np.where(index % 3 == 0, "sex=F", "sex=M")
    rows = Rows(index.astype(str), index, index.astype(str), label[:, None], {"sex": sex})
    raw = {**RAW, "sampling": "group", "lr": 1e-2}
    adapted, plan = make(vit, rows, store, raw, epochs=8)
    _, state = train_epochs(adapted, plan, 0, 8)
    assert state[NAME][0] > state[NAME][1] + 0.3
