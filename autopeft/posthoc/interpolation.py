"""Between two sets of weights: WiSE-FT along a line, slerp along an arc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autopeft.adapter import Model
from autopeft.backbones.network import Network
from autopeft.errors import UserError
from autopeft.methods.adapted import Adapted, build
from autopeft.methods.interpolation import move_of, why_not
from autopeft.posthoc.folders import (
    Head,
    Source,
    State,
    head_of,
    open_all,
    opened,
    rebuilt,
    share,
    trained_names,
)

_SAME = 1e-6  # sine of an angle below which an arc is a line


# ---- pure functions -----------------------------------------------------------------------------


def line(first: Tensor, second: Tensor, share: float) -> Tensor:
    """(1 - share) first + share second, in fp64; both ends bit for bit."""
    if share in (0, 1) or not first.is_floating_point():
        return (second if share else first).clone()
    between = (1 - share) * first.double() + share * second.double()
    return between.to(second.dtype)


def interpolated(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> State:
    """``line`` for each tensor of two state dicts with the same names."""
    return {name: line(value, second[name], share) for name, value in first.items()}


def arc(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Point on the great circle between two directions: fp64, shape of both.

    sin((1-t) w) / sin w a + sin(t w) / sin w b, w the angle between a and b; the line where one
    is zero or they point the same or opposite ways.
    """
    a, b = first.double(), second.double()
    norms = a.norm() * b.norm()
    if not norms:
        return (1 - share) * a + share * b
    angle = torch.arccos(((a * b).sum() / norms).clamp(-1, 1))
    if angle.sin() < _SAME:
        return (1 - share) * a + share * b
    found: Tensor = ((1 - share) * angle).sin() / angle.sin() * a
    return found + (share * angle).sin() / angle.sin() * b


def first_values(adapted: Adapted) -> State:
    """What the tensors of a fresh adapter that go toward their first values hold; copies."""
    strata = adapted.candidate.strata
    return {
        name: adapted.trainable[name].detach().clone()
        for name in trained_names(adapted)
        if move_of(name, strata) == "first"
    }


def between(adapted: Adapted, first: Mapping[str, Tensor], alpha: float, head: Head) -> State:
    """Tensors of the adapter that is (1 - alpha) frozen + alpha trained weights.

    Args:
        adapted: the trained adapter; left as it is.
        first: its ``first_values``.
        alpha: how far toward the trained weights.
        head: the frozen end's head.
    """
    classifier = adapted.network.facts.classifier
    ends = {f"{classifier}.weight": head[0], f"{classifier}.bias": head[1]}
    found = dict(adapted.tensors())
    for name, trained in found.items():
        if name in ends:
            found[name] = line(ends[name].to(trained.device), trained, alpha)
        elif name in adapted.trainable:
            move = move_of(name, adapted.candidate.strata)
            start = first[name] if move == "first" else torch.zeros_like(trained)
            found[name] = trained.clone() if move == "held" else line(start, trained, alpha)
    return found


# ---- on adapters --------------------------------------------------------------------------------


def wise_ft(
    source: Source,
    alpha: float,
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> Model:
    """(1 - alpha) frozen + alpha trained weights, as an adapter again.

    Exact where merged weights are linear in some of what trains (LoRA: B is multiplied by alpha).
    Choose alpha on validation images only.

    Paper: Wortsman et al. 2021, arXiv:2109.01903.

    Args:
        source: the trained adapter.
        alpha: 0 (frozen) to 1 (trained), 0.5 in the paper.
        head: the frozen end's head: a linear probe's adapter, or its weight and bias. None keeps
            the trained head at both ends.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.

    Raises:
        UserError: a method whose effect cannot be scaled inside the adapter; it says why.
    """
    model = opened(source, weights, network)
    alpha = share(alpha, "alpha", "wise_ft")
    reason = why_not(model.candidate.strata)
    if reason:
        fix = "Use posthoc.wise_ft_weights, which interpolates merged weights."
        raise UserError(f"cannot interpolate the adapter: {reason}", "wise_ft", fix)
    own = (model.adapted.head.weight.detach(), model.adapted.head.bias.detach())
    end = own if head is None else head_of(head, model, "wise_ft")
    outputs, fixed = len(model.classes), model.adapted.fixed
    fresh = build(model.base, model.candidate, outputs, 0, 0, fixed)
    tensors = between(model.adapted, first_values(fresh), alpha, end)
    return rebuilt(model, tensors, {"step": "wise_ft", "alpha": alpha, "head": head is not None})


def wise_ft_weights(
    source: Source,
    alpha: float,
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> State:
    """As ``wise_ft``, but plain timm weights, and for every method that can be merged.

    Raises:
        UserError: the adapter does not fold into plain weights.
    """
    found = open_all([source], head, 1, "wise_ft", weights, network)
    return interpolated(found.base, found.trained[0], share(alpha, "alpha", "wise_ft"))


def slerp(
    sources: Sequence[Source],
    t: float = 0.5,
    head: Source | Head | None = None,
    weights: str | None = None,
    network: Network | None = None,
) -> State:
    """Two adapters of one backbone, between them on an arc: W0 + arc(W1 - W0, W2 - W0; t).

    Each tensor by itself. The changes are what is turned, not the weights: these differ so little
    that an arc between them is a line.

    Paper: Shoemake 1985, SIGGRAPH (animating rotation with quaternion curves).

    Args:
        sources: two adapters.
        t: 0 is the first, 1 the second.
        head: the head of the result; None interpolates the two on a line.
        weights: as in ``load_adapter``.
        network: as in ``load_adapter``.
    """
    found = open_all(sources, head, 2, "slerp", weights, network)
    if len(found.trained) != 2:
        raise UserError(f"needs two adapters, not {len(found.trained)}", "slerp")
    one, two = found.trained
    t, state = share(t, "t", "slerp"), dict(found.base)
    for name, base in found.base.items():
        if found.is_head(name):
            state[name] = base if found.head else line(one[name], two[name], t)
        elif t in (0, 1) or not base.is_floating_point():
            state[name] = (two if t else one)[name].clone()
        else:
            w0 = base.double()
            state[name] = (w0 + arc(one[name] - w0, two[name] - w0, t)).to(base.dtype)
    return state
