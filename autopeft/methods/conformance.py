"""What every method must keep, checked on a small backbone. A user's own method passes it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbones.network import Network
from autopeft.candidate import Candidate
from autopeft.methods.adapted import Adapted, build
from autopeft.methods.canonical import canonical
from autopeft.methods.merge import merged_state
from autopeft.methods.registry import method_named
from autopeft.methods.scored import ToyScoring, has_scored, look

OUTPUTS = 3


def check_method(
    raw: Mapping[str, Any],
    network: Network,
    identity: bool = True,
    steps: int = 3,
    noise: float = 0.01,
) -> None:
    """Runs all checks for one candidate as a person would write it.

    The backbone must let its blocks through: layer scale and the last BatchNorm weights away from
    zero (``backbones.describe.random_backbone``), or the checks pass on a broken adapter.

    Args:
        raw: the candidate, e.g. ``{"method": "lora", "blocks": 2}``.
        network: a small backbone; stays as it is.
        identity: whether a fresh adapter must not change the output.
        steps: optimizer steps of the training check.
        noise: how far a perturbation moves each trained number (standard deviation).

    Raises:
        AssertionError: says which property fails.
    """
    candidate = canonical(raw, network.facts)
    assert canonical(candidate.to_dict(), network.facts) == candidate, "canonical is idempotent"
    before = {k: v.clone() for k, v in network.model.state_dict().items()}
    x, label = _toy(network)
    _check_names(network, candidate)
    if identity:
        _check_identity(network, candidate, x)
    _check_prefix(network, candidate, x, noise)
    _check_training(network, candidate, x, label, steps)
    _check_resident(network, before)
    _check_state(network, candidate, x, noise)
    _check_merge(network, candidate, x, noise)
    _check_resident(network, before)


def _check_resident(network: Network, before: Mapping[str, Tensor]) -> None:
    """The resident backbone keeps every bit: other trials run on it."""
    changed = _changed(before, network.model.state_dict())
    assert not changed, f"the resident backbone changed: {sorted(changed)}"


def _toy(network: Network) -> tuple[Tensor, Tensor]:
    """Images whose brightness tells the class."""
    generator = torch.Generator().manual_seed(0)
    size = network.facts.image_size
    label = torch.arange(6) % OUTPUTS
    noise = torch.randn(6, 3, size, size, generator=generator)
    return noise + 1.5 * (label - 1.0).view(-1, 1, 1, 1), label


def _fresh(network: Network, candidate: Candidate) -> Adapted:
    """A fresh adapter; a method that looks at images first looks at the toy ones."""
    fixed = None
    if has_scored(candidate):
        fixed = look(candidate, ToyScoring(network, candidate, *_toy(network), OUTPUTS))
    return build(network, candidate, OUTPUTS, 0, 0, fixed)


def _probe(network: Network, candidate: Candidate) -> Adapted:
    """The frozen backbone with the same head."""
    raw = {"method": "linear_probe", "readout": vars(candidate.readout)}
    return build(network, canonical(raw, network.facts), OUTPUTS, 0, 0)


def _perturbed(network: Network, candidate: Candidate, noise: float) -> Adapted:
    """Every trained number of the adapter moved by N(0, noise), the head as it is."""
    adapted = _fresh(network, candidate)
    generator = torch.Generator().manual_seed(1)
    head = {id(p) for p in adapted.head.parameters()}
    with torch.no_grad():
        for parameter in adapted.trainable.values():
            if id(parameter) not in head:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return adapted


def _check_names(network: Network, candidate: Candidate) -> None:
    """T0: exactly the declared parameters train, as many as the formula says."""
    adapted = _fresh(network, candidate)
    modules = (adapted.network.model, adapted.head)
    opened = {id(p) for m in modules for p in m.parameters() if p.requires_grad}
    declared = {id(p) for p in adapted.trainable.values()}
    assert opened == declared, "parameters train that are not declared, or the reverse"
    formula = sum(
        method_named(s.method)(**s.options).parameter_count(network.facts, s, candidate.readout)
        for s in candidate.strata
    )
    assert adapted.adapter_params == formula, (adapted.adapter_params, formula)
    again = _fresh(network, candidate)
    assert list(again.trainable) == list(adapted.trainable), "names are stable"
    assert not _changed(again.tensors(), adapted.tensors()), "initialization is deterministic"


def _check_identity(network: Network, candidate: Candidate, x: Tensor) -> None:
    """T1: a fresh adapter changes nothing."""
    with torch.no_grad():
        fresh = _fresh(network, candidate).pooled(x)
        frozen = _probe(network, candidate).pooled(x)
    assert _apart(fresh, frozen) <= 1e-5, "a fresh adapter changes the output"


def _check_prefix(network: Network, candidate: Candidate, x: Tensor, noise: float) -> None:
    """T4: below ``first_block`` the adapted network is the plain one, bit for bit, no gradient."""
    adapted = _perturbed(network, candidate, noise)
    k = adapted.first_block
    if not adapted.prefix_ok or k == 0:
        return
    adapted.set_train(True)
    with torch.no_grad():
        plain = network.advance(0, x, k)
        assert torch.equal(plain, adapted.network.advance(0, x, k)), "the prefix moved"
        adapted.set_train(False)
        assert torch.equal(adapted.logits(x), adapted.logits(plain, start=k)), "start differs"
    state = network.advance(0, x, k - 1).requires_grad_(k > 1)
    adapted.logits(state if k > 1 else x, start=k - 1).sum().backward()  # type: ignore[no-untyped-call]
    assert state.grad is None, "a gradient reaches a block below first_block"


def _check_training(
    network: Network, candidate: Candidate, x: Tensor, label: Tensor, steps: int
) -> None:
    """Training changes what is declared and nothing else, and the loss falls."""
    adapted = _fresh(network, candidate)
    own = dict(adapted.network.model.state_dict())
    before = {k: v.clone() for k, v in own.items()}
    start = {k: v.clone() for k, v in adapted.tensors().items()}
    declared = {p.data_ptr() for p in adapted.trainable.values()}
    optimizer = torch.optim.AdamW(adapted.param_groups(1e-3, 0.01))
    losses = []
    adapted.set_train(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(adapted.logits(x), label)
            if adapted.extra_loss:
                loss = loss + adapted.extra_loss()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if adapted.after_step:
                adapted.after_step(step, steps)
            losses.append(float(loss.detach()))
    adapted.set_train(False)
    changed = _changed(before, own)
    wrong = {k for k in changed if own[k].data_ptr() not in declared}
    assert not wrong, f"parameters changed that are not declared: {sorted(wrong)}"
    still = adapted.trainable.keys() - _changed(start, adapted.tensors())
    assert not still, f"declared parameters never changed: {sorted(still)}"
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"


def _check_state(network: Network, candidate: Candidate, x: Tensor, noise: float) -> None:
    """T2: the trained tensors alone carry the adapter, bit for bit."""
    trained = _perturbed(network, candidate, noise)
    saved = {k: v.clone() for k, v in trained.tensors().items()}
    fresh = build(network, candidate, OUTPUTS, 0, 1, saved)
    fresh.load_tensors(saved)
    with torch.no_grad():
        assert torch.equal(fresh.logits(x), trained.logits(x)), "reloaded outputs differ"


def _check_merge(network: Network, candidate: Candidate, x: Tensor, noise: float) -> None:
    """T3: the adapter matters, and folded into a plain model it computes the same."""
    adapted = _perturbed(network, candidate, noise)
    with torch.no_grad():
        logits = adapted.logits(x)
        if candidate.strata:
            moved = _apart(adapted.pooled(x), _probe(network, candidate).pooled(x))
            assert moved > 1e-3, f"the adapter has no effect ({moved:.1e})"
        mergeable = all(method_named(s.method).mergeable for s in candidate.strata)
        if not (mergeable and adapted.is_own_readout):
            return
        plain = network.fork(OUTPUTS)
        # Assigned, not copied: the fork's tensors are the resident ones.
        plain.model.load_state_dict(merged_state(adapted), strict=True, assign=True)
        assert _apart(plain.model(x), logits) <= 1e-5, "merged and unmerged outputs differ"
        assert torch.equal(adapted.logits(x), logits), "merging changed the adapter"


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of b's largest value."""
    return float((a - b).abs().max() / b.abs().max())


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that differ in any bit."""
    assert before.keys() == after.keys(), sorted(before.keys() ^ after.keys())
    return {k for k in before if not torch.equal(before[k], after[k])}
