"""Folding an adapter into the weights of a plain timm model."""

from __future__ import annotations

from torch import Tensor

from autopeft.errors import UserError
from autopeft.methods.adapted import Adapted, methods_of


def can_merge(adapted: Adapted) -> bool:
    """Whether a plain timm model can compute what ``adapted`` does."""
    every = methods_of(adapted.candidate)
    return adapted.is_own_readout and all(method.mergeable for method in every)


def merged_state(adapted: Adapted) -> dict[str, Tensor]:
    """State dict of a plain timm model (``num_classes`` = C) that computes what ``adapted`` does.

    The adapter itself is left as it is.

    Returns:
        Float32 tensors by timm name, contiguous, sharing memory with nothing.

    Raises:
        UserError: the readout is not timm's own, or a method cannot be merged.
    """
    readout = adapted.candidate.readout
    if not adapted.is_own_readout:
        what = f"readout {readout.block} {readout.pool} is not timm's own, so no timm model has it"
        raise UserError(what, "merge", "Use the adapter folder with autopeft.load_adapter.")
    methods = methods_of(adapted.candidate)
    for method in methods:
        if not method.mergeable:
            fix = "Use the adapter folder with autopeft.load_adapter."
            raise UserError(f"{method.name} cannot be merged", "merge", fix)
    fork = adapted.network.fork()
    for method in methods:
        method.fold(fork)
    return {k: v.detach().clone().contiguous() for k, v in fork.model.state_dict().items()}
