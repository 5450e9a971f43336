"""In which directions the inputs of layers are largest, over training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autopeft.methods.singular import fixed_signs

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.methods.method import Scoring

IMAGES = 128  # inputs are seen on at most this many training images
BATCH = 16
MOST = 256  # directions that are kept of a layer, as many as a rank can ask for


def input_directions(scoring: Scoring, places: Sequence[tuple[int, str]]) -> dict[str, Tensor]:
    """Right singular vectors of linear layers' inputs in the frozen network, the largest first.

    The inputs of a layer, every token or place of the map of every image a row, are never kept:
    X^T X is summed in fp64 and its eigenvectors are X's right singular vectors. The network is
    run once, block by block, so that one block's sums are in memory at a time. Signs are fixed:
    the entry of largest size is positive. What was found is shared by all candidates of a worker.

    Args:
        scoring: training images and the resident backbone.
        places: (block, path) of each layer.

    Returns:
        Path -> [min(inputs, 256), inputs], orthonormal rows, fp32 on the CPU.
    """
    known: dict[str, Tensor] = scoring.cached("input directions", dict)
    missing = [place for place in places if place[1] not in known]
    if missing:
        known.update(_seen(scoring, missing))
    return {path: known[path] for _, path in places}


def _seen(scoring: Scoring, places: Sequence[tuple[int, str]]) -> dict[str, Tensor]:
    """As ``input_directions``, of layers that nobody has asked for."""
    fork, found = scoring.network.fork(), dict[str, Tensor]()
    states: list[Tensor] = []
    with torch.no_grad():
        first = min(block for block, _ in places)
        for x, _ in scoring.batches(BATCH, IMAGES):
            states.append(fork.advance(0, x, first))
        for block in range(first, max(block for block, _ in places) + 1):
            paths = [path for at, path in places if at == block]
            sums = _watched(fork, paths)
            states = [fork.run(state, block, block + 1) for state in states]
            found |= {path: _largest(sums[path]) for path in paths}
    return found


def _watched(network: Network, paths: Sequence[str]) -> dict[str, Tensor]:
    """X^T X [inputs, inputs] of each layer, which grows whenever the layer runs."""
    sums: dict[str, Tensor] = {}
    for path in paths:
        module: Any = network.model.get_submodule(path)
        size, device = module.in_features, module.weight.device
        sums[path] = torch.zeros(size, size, dtype=torch.float64, device=device)

        def see(module: nn.Module, args: Any, total: Tensor = sums[path]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1]).double()
            total.addmm_(rows.t(), rows)

        module.register_forward_pre_hook(see)
    return sums


def _largest(total: Tensor) -> Tensor:
    """Eigenvectors as rows, those of the largest eigenvalues first."""
    vectors = torch.linalg.eigh(total.cpu())[1].flip(1)[:, :MOST]
    found: Tensor = (vectors * fixed_signs(vectors)).t().float().contiguous()
    return found
