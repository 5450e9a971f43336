"""Singular value decompositions of a backbone's weights, computed once and shared by all forks."""

from __future__ import annotations

import torch
from torch import Tensor

from autopeft.backbones.network import Network

# ViT-B needs 0.5 GB; what does not fit is computed again.
LIMIT_BYTES = 2**30

Triple = tuple[Tensor, Tensor, Tensor]
_CACHE: dict[tuple[str, str], Triple] = {}


def svd_of(network: Network, path: str) -> Triple:
    """U [o, k], S [k] and V^T [k, i] of a module's frozen weight seen as [o, fan in], in fp32.

    Computed in fp64 on the CPU. A sign is free in each pair of vectors: the largest entry of each
    u is made positive, so that what was trained on one machine means the same on another.

    Args:
        network: a fork whose module still has the backbone's own weight.
        path: the module.
    """
    key = (network.facts.sha256, path)
    device = network.model.get_submodule(path).weight.device
    if key not in _CACHE:
        weight = network.model.get_submodule(path).weight
        _CACHE[key] = decompose(weight.detach().cpu().flatten(1))
        while sum(_bytes(t) for t in _CACHE.values()) > LIMIT_BYTES and len(_CACHE) > 1:
            del _CACHE[next(iter(_CACHE))]
    u, s, vt = _CACHE[key]
    return u.to(device), s.to(device), vt.to(device)


def decompose(weight: Tensor) -> Triple:
    """As ``svd_of``, of any matrix, not cached."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    sign = fixed_signs(u)
    return (u * sign).float(), s.float(), (vt * sign[:, None]).float()


def fixed_signs(u: Tensor) -> Tensor:
    """+1 or -1 for each column, so that its entry of largest size becomes positive."""
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(u.dtype)


def _bytes(triple: Triple) -> int:
    return sum(t.numel() * t.element_size() for t in triple)
