"""Stacking LoRA adapters: the exact weighted sum of their updates, ranks added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autopeft.adapter import Model
from autopeft.backbones.network import Network
from autopeft.candidate import Candidate, Stratum
from autopeft.errors import UserError
from autopeft.methods import canonical
from autopeft.methods.interpolation import why_not
from autopeft.posthoc.folders import Head, Source, State, check_pair, head_of, opened, rebuilt

_STEP = "lora_stack"
_MOST = 256
Factor = tuple[Tensor, Tensor]  # A [r, in, ...], B [out, r, ...] with its scale in it


def stacked(factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
    """A = [A1; A2; ...] and B = [p1 B1, p2 B2, ...], so B A = sum of p_i B_i A_i."""
    a = torch.cat([a for a, _ in factors], 0)
    b = torch.cat([p * b for (_, b), p in zip(factors, weights, strict=True)], 1)
    return a, b


def lora_stack(
    sources: Sequence[Source],
    shares: Sequence[float] | None = None,
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> Model:
    """One LoRA adapter that adds sum_i p_i s_i B_i A_i, of any ranks, blocks and modules.

    Averaging A and B by themselves is something else.

    Paper: FLoRA, Wang et al. 2024, arXiv:2409.05976 (federated stacking).

    Args:
        sources: two or more adapters of method ``lora`` with one readout and one list of classes.
        shares: p_i; None gives each 1 / k. Negative ones subtract.
        head: the head of the result; None gives the mean of the heads, weighted by the shares.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.

    Raises:
        UserError: another method, an update that is no product of two factors, a rank above 256.
    """
    if isinstance(sources, (str, Model)) or len(sources) < 2:
        raise UserError("needs a list of 2 adapters or more", _STEP, "Write [folder, folder].")
    first = opened(sources[0], weights, network)
    models = [first, *(opened(s, weights, network or first.base) for s in sources[1:])]
    p = [1 / len(models)] * len(models) if shares is None else [float(s) for s in shares]
    _check(models, p, head)
    sites: dict[str, list[tuple[float, Factor]]] = {}
    for model, portion in zip(models, p, strict=True):
        for path, factor in _factors(model).items():
            sites.setdefault(path, []).append((portion, factor))
    found = {
        path: stacked([f for _, f in parts], [q for q, _ in parts])
        for path, parts in sites.items()
    }
    candidate = _candidate(first, {path: len(a) for path, (a, _) in found.items()})
    tensors: State = {}
    for path, (a, b) in found.items():
        tensors |= {f"{path}.lora_A.weight": a.float(), f"{path}.lora_B.weight": b.float()}
    tensors |= _head(models, p, head)
    return rebuilt(first, tensors, {"step": _STEP, "shares": p}, candidate=candidate)


def _check(models: Sequence[Model], p: Sequence[float], head: Source | Head | None) -> None:
    if len(p) != len(models):
        raise UserError(f"has {len(models)} adapters and {len(p)} shares", _STEP)
    if head is None and sum(p) == 0:
        raise UserError("shares add up to 0, so no head is left", _STEP, "Give head.")
    for model in models:
        if model.candidate.method != "lora":
            what = f"{model.candidate.method} is not stacked, only lora is"
            raise UserError(what, _STEP, "Use posthoc.ties or posthoc.breadcrumbs.")
        reason = why_not(model.candidate.strata)
        if reason:
            raise UserError(f"cannot stack: {reason}", _STEP, "Train it without.")
        check_pair(models[0], model, _STEP)
        if model.candidate.readout != models[0].candidate.readout:
            raise UserError("the adapters have different readouts", _STEP)


def _factors(model: Model) -> Mapping[str, Factor]:
    """Path of a layer -> A and s B, in fp64."""
    facts, tensors = model.base.facts, model.adapted.tensors()
    found: dict[str, Factor] = {}
    for stratum in model.candidate.strata:
        r, alpha = stratum.options["r"], stratum.options["lora_alpha"]
        scale = alpha / (r**0.5 if stratum.options["use_rslora"] else r)
        for path in _paths(model.base, stratum):
            a, b = (tensors[f"{path}.lora_{f}.weight"].double() for f in "AB")
            found[path] = (a, scale * b)
    assert len(found) * 2 + 2 == len(tensors), facts.name
    return found


def _paths(network: Network, stratum: Stratum) -> list[str]:
    blocks = range(stratum.blocks[0], stratum.blocks[1] + 1)
    modules = network.facts.modules
    there = [(b, m) for b in blocks for m in stratum.modules if modules[m][b]]
    return [network.module_path(b, m) for b, m in there]


def _candidate(model: Model, ranks: Mapping[str, int]) -> Candidate:
    """A candidate whose layers have these ranks and scale 1."""
    network, strata = model.base, []
    facts = network.facts
    for block in range(facts.depth):
        groups: dict[int, list[str]] = {}
        for module, shapes in facts.modules.items():
            path = network.module_path(block, module) if shapes[block] else ""
            if path in ranks:
                groups.setdefault(ranks[path], []).append(module)
        for rank, modules in sorted(groups.items()):
            if rank > _MOST:
                what = f"ranks add up to {rank}, the most is {_MOST}"
                raise UserError(what, _STEP, "Stack fewer adapters, or merge some.")
            place = {"blocks": [block, block], "modules": modules}
            options = {"r": rank, "lora_alpha": float(rank)}
            strata.append({"method": "lora", **place, "options": options})
    old = model.candidate.twin.to_dict()
    return canonical({**old, "strata": strata}, facts)


def _head(models: Sequence[Model], p: Sequence[float], head: Source | Head | None) -> State:
    classifier = models[0].base.facts.classifier
    if head is not None:
        weight, bias = head_of(head, models[0], _STEP)
        return {f"{classifier}.weight": weight, f"{classifier}.bias": bias}
    state = {}
    for name in ("weight", "bias"):
        values = [m.adapted.head.get_parameter(name).detach().double() for m in models]
        total = torch.stack([q * v for q, v in zip(p, values, strict=True)]).sum(0)
        state[f"{classifier}.{name}"] = (total / sum(p)).float()
    return state
