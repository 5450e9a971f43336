"""What ``Scored`` methods find before a training starts; and a toy to find it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.methods.method import Scored, Scoring
from autopeft.methods.registry import method_named

if TYPE_CHECKING:
    from autopeft.backbones.network import Network
    from autopeft.candidate import Candidate, Stratum
    from autopeft.methods.adapted import Adapted


def has_scored(candidate: Candidate) -> bool:
    """Whether a method of the candidate looks at training images first."""
    return any(looking(s) for s in candidate.strata)


def looking(stratum: Stratum) -> type[Scored] | None:
    """The stratum's method if it looks at training images first, else None."""
    method = method_named(stratum.method)
    if issubclass(method, Scored) and method(**stratum.options).looks():
        return method
    return None


def look(candidate: Candidate, scoring: Scoring) -> dict[str, Tensor]:
    """What ``build`` needs as ``fixed`` for a candidate that has no state yet.

    Args:
        candidate: made by ``canonical``.
        scoring: training images and what goes with them.
    """
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(s.method for s in candidate.strata):
        strata = [s for s in candidate.strata if s.method == name]
        method = looking(strata[0])
        if method:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(scoring.seed)
                found |= method.prepare(scoring, strata, candidate.readout)
    return found


class ToyScoring:
    """Scoring on a few given images, for checks of methods; see ``Scoring``.

    Args:
        network: the resident backbone.
        candidate: its readout decides the head.
        x: normalized pixels [N, 3, S, S].
        label: class numbers [N].
        outputs: classes C.
    """

    def __init__(
        self, network: Network, candidate: Candidate, x: Tensor, label: Tensor, outputs: int
    ) -> None:
        self.network = network
        self.seed = 0
        self._x, self._label = x, functional.one_hot(label, outputs).float()
        readout = candidate.readout
        width = network.facts.width(readout.block, readout.pool)
        generator = torch.Generator().manual_seed(0)
        self._head = torch.randn(outputs, width, generator=generator) * 0.1, torch.zeros(outputs)
        self._made: dict[str, Any] = {}

    def head(self) -> tuple[Tensor, Tensor]:
        """A small random head."""
        return self._head

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The images in their order."""
        stop = len(self._x) if limit is None else min(limit, len(self._x))
        for start in range(0, stop, size):
            part = slice(start, min(start + size, stop))
            yield self._x[part], self._label[part]

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy with one-hot labels [b, C]."""
        return functional.cross_entropy(logits.float(), label)

    def fine_tune(self, adapted: Adapted, epochs: int, lr: float) -> None:
        """So many steps on all images."""
        optimizer = torch.optim.AdamW(adapted.param_groups(lr, 0.0))
        with torch.enable_grad():
            for _ in range(epochs):
                optimizer.zero_grad()
                self.loss(adapted.logits(self._x), self._label).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def cached(self, key: str, make: Callable[[], Any]) -> Any:
        """Made once."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
