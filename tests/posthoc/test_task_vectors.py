"""Breadcrumbs and TIES, against loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autopeft import posthoc
from autopeft.adapter import merge
from autopeft.errors import UserError
from autopeft.posthoc.task_vectors import breadcrumb, elected, kept_counts, trimmed

FULL = {"method": "full", "blocks": 1}
LORA = {"method": "lora", "blocks": [2, 5], "r": 4}


@pytest.mark.parametrize("shape", [(64,), (7, 33), (5, 3, 3, 3)])
@pytest.mark.parametrize(("beta", "gamma"), [(0.2, 0.1), (0.05, 0.01), (1, 0), (0, 0), (1, 0.5)])
def test_breadcrumbs_row_by_row(shape, beta, gamma):
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = breadcrumb(change, beta, gamma)
    rows = change.numpy().reshape(shape[0] if len(shape) > 1 else 1, -1)
    for row, got in zip(rows, found.numpy().reshape(rows.shape), strict=True):
        dropped, kept = kept_counts(len(row), beta, gamma)
        assert int((got != 0).sum()) == kept
        sizes = np.sort(np.abs(row))[::-1]
        want = [v if v in sizes[dropped : dropped + kept] else 0 for v in np.abs(row)]
        np.testing.assert_array_equal(np.abs(got), want)
        np.testing.assert_array_equal(got[got != 0], row[got != 0])


def test_counts():
    assert kept_counts(100, 0.2, 0.1) == (10, 18)
    assert kept_counts(64, 1, 0) == (0, 64)


@pytest.mark.parametrize("raw", [FULL, LORA], ids=str)
def test_nothing_dropped_gives_the_trained_weights(trained, raw):
    model = trained(raw)
    state = posthoc.breadcrumbs(model, alpha=1, beta=1, gamma=0)
    for name, value in merge(model.adapted).items():
        assert torch.equal(state[name], value), name


def test_breadcrumbs_of_two_tasks_are_the_scaled_sum(trained, vit):
    models = [trained(LORA, seed=s) for s in (0, 1)]
    name = "blocks.3.mlp.fc1.weight"
    w0 = vit.model.state_dict()[name].double()
    want = w0 + 0.4 * sum(
        breadcrumb(merge(m.adapted)[name].double() - w0, 0.2, 0.1) for m in models
    )
    found = posthoc.breadcrumbs(models)
    torch.testing.assert_close(found[name], want.float())
    heads = torch.stack([m.adapted.head.bias.detach() for m in models]).mean(0)
    torch.testing.assert_close(found["head.bias"], heads)


# ---- TIES ---------------------------------------------------------------------------------------


def test_trimming_is_over_all_tensors_together():
    change = {"a": torch.tensor([[5.0, -1.0], [0.5, 0.1]]), "b": torch.tensor([-4.0, 3.0, 0.2])}
    found = trimmed(change, 3 / 7)
    assert found["a"].tolist() == [[5, 0], [0, 0]]
    assert found["b"].tolist() == [-4, 3, 0]


def test_signs_are_elected_by_mass():
    found = elected([torch.tensor([3.0, -1.0, 0.0]), torch.tensor([-2.0, -3.0, 0.0])])
    assert found.tolist() == [3, -2, 0]
    third = torch.tensor([-2.0, 0.0, 0.0])
    found = elected([torch.tensor([3.0, -1.0, 0.0]), torch.tensor([-2.0, -3.0, 0.0]), third])
    assert found.tolist() == [-2, -2, 0]  # one 3 is outvoted by two -2, zeros do not count


def ties_in_numpy(base, models, density, scale):
    """The paper's algorithm 1 on flat vectors."""
    names = [n for n in base if any(not torch.equal(m[n], base[n]) for m in models)]
    w0 = np.concatenate([base[n].numpy().ravel() for n in names]).astype(np.float64)
    taus = [np.concatenate([m[n].numpy().ravel() for n in names]) - w0 for m in models]
    kept = int(density * len(w0) + 0.5)
    for tau in taus:
        tau[np.argsort(-np.abs(tau), kind="stable")[kept:]] = 0
    gamma = np.sign(np.sum(taus, axis=0))
    merged = np.zeros_like(w0)
    for p in range(len(w0)):
        agree = [tau[p] for tau in taus if tau[p] and np.sign(tau[p]) == gamma[p]]
        merged[p] = np.mean(agree) if agree else 0
    return names, w0 + scale * merged


def test_ties_of_adapters_against_numpy(trained, vit):
    models = [trained(LORA, seed=s) for s in range(3)]
    states = [merge(m.adapted) for m in models]
    names, want = ties_in_numpy(vit.model.state_dict(), states, 0.1, 0.8)
    found = posthoc.ties(models, density=0.1, scale=0.8)
    got = np.concatenate([found[n].numpy().ravel() for n in names])
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(want - np.concatenate([states[0][n].numpy().ravel() for n in names])).max() > 0


def test_one_adapter_twice_with_nothing_trimmed_is_itself(trained):
    model = trained(FULL)
    state = posthoc.ties([model, model], density=1, scale=1)
    for name, value in merge(model.adapted).items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-7)


def test_refusals(trained):
    model = trained(FULL)
    for values in ({"alpha": 5}, {"beta": 2}, {"gamma": -0.1}):
        with pytest.raises(UserError, match="Range"):
            posthoc.breadcrumbs(model, **values)
    with pytest.raises(UserError, match="Range"):
        posthoc.ties([model, model], density=1.5)
    with pytest.raises(UserError, match="no weight but the head"):
        posthoc.breadcrumbs(trained({"method": "linear_probe"}))
