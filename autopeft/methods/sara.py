"""SaRA: the smallest weights train, and those that grew are left alone from mid-training on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods.method import Injection, Rate, number
from autopeft.methods.sparse import Recipe, SparseDelta

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class Sara(SparseDelta):
    """The weights with |W| <= tau train; tau is the quantile ``share`` of all in scope.

    At a share of the training the entries that are still within tau go on and the others keep
    the value that they reached. Each step adds ``rank_weight`` times the nuclear norm of
    mask * W' of one random layer; its gradient needs a singular value decomposition.

    Differs from the paper: tau is a quantile, not 2e-3, which fits one diffusion model; the
    optimizer's moments of the entries that go on are kept at the re-selection.

    Attributes:
        share: share of the weights in scope.
        reselect_at: share of all steps after which entries are chosen again; 1 = never.
        rank_weight: weight of the nuclear norm; 0 = none.
    """

    name: ClassVar[str] = "sara"
    paper: ClassVar[str] = "Hu et al. 2024, arXiv:2409.06633"
    summary: ClassVar[str] = "Trains the smallest weights, those that grew only at first."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": Rate(5e-4, 1e-5, 5e-3)}

    share: float = number(0.05, 1e-3, 0.5)
    reselect_at: float = number(0.5, 0.01, 1.0)
    rank_weight: float = number(5e-4, 0.0, 1.0)

    def recipe(self) -> Recipe:
        """-|W|, all layers ranked together."""
        return Recipe("abs_small", share=self.share)

    @classmethod
    def inject_scored(
        cls,
        network: Network,
        strata: Sequence[Stratum],
        readout: Readout,
        fixed: Mapping[str, Tensor],
    ) -> Injection:
        """Opens the chosen entries, with the penalty and the re-selection."""
        trainable, kept = dict[str, Any](), dict[str, Any]()
        sets, losses = list[_Set](), list[Callable[[], Any]]()
        for method, group in cls.groups(strata):
            assert isinstance(method, Sara)
            part = super().inject_scored(network, group, readout, fixed)
            one = _Set(method, network, part, fixed)
            trainable |= part.trainable
            kept |= part.fixed | one.active
            sets.append(one)
            if method.rank_weight:
                losses.append(one.nuclear_norm)

        def after_step(step: int, total: int) -> None:
            for one in sets:
                one.after_step(step, total)

        extra = (lambda: sum(loss() for loss in losses)) if losses else None
        return Injection(trainable, kept, extra, after_step)


class _Set:
    """The layers of one setting: which of their entries go on."""

    def __init__(
        self, method: Sara, network: Network, part: Injection, fixed: Mapping[str, Tensor]
    ) -> None:
        import torch

        self.method = method
        self.active: dict[str, torch.Tensor] = {}
        self.values: list[torch.nn.Parameter] = []
        self.places: list[torch.Tensor] = []
        self.start: list[torch.Tensor] = []
        self.shapes: list[tuple[int, int]] = []
        for name, value in part.trainable.items():
            path = name.removesuffix(".sara_value")
            layer: Any = network.model.get_submodule(path)
            weight = layer.weight.detach()
            places = layer.sara_index.long()
            self.values.append(value)
            self.places.append(places)
            self.start.append(weight.reshape(-1)[places])
            self.shapes.append((weight.shape[0], weight.numel() // weight.shape[0]))
            active = fixed.get(f"{path}.sara_active", torch.ones(len(value), dtype=torch.uint8))
            self.active[f"{path}.sara_active"] = active.to(value.device, copy=True)
        self.tau = max(float(start.abs().max()) for start in self.start)
        self.held: list[torch.Tensor | None] = [None] * len(self.values)
        for number_, value in enumerate(self.values):
            value.register_hook(self._watch(number_))  # type: ignore[no-untyped-call]

    def _watch(self, i: int) -> Callable[[Tensor], Tensor]:
        """Keeps what the entries are before a step, and stops the gradient of those left alone."""
        active = list(self.active.values())[i]

        def hook(grad: Tensor) -> Tensor:
            self.held[i] = self.values[i].detach().clone()
            return grad * active

        return hook

    def after_step(self, step: int, total: int) -> None:
        """Puts back what an optimizer's momentum moved, and chooses again when it is time."""
        import torch

        again = step + 1 == max(1, round(self.method.reselect_at * total)) < total
        with torch.no_grad():
            for i, active in enumerate(self.active.values()):
                held, value = self.held[i], self.values[i]
                if held is not None:
                    value.copy_(torch.where(active.bool(), value, held))
                if again:
                    active.mul_((self.start[i].to(value.device) + value).abs() <= self.tau)
                self.held[i] = None

    def nuclear_norm(self) -> Tensor:
        """The penalty of one layer, drawn anew at each call from torch's generator."""
        import torch

        i = int(torch.randint(len(self.values), ()))
        value = self.values[i]
        places, start = self.places[i].to(value.device), self.start[i].to(value.device)
        masked = torch.zeros(self.shapes[i], device=value.device).reshape(-1)
        masked = masked.index_put((places,), start + value)
        norm: Tensor = torch.linalg.svdvals(masked.reshape(self.shapes[i])).sum()
        return norm * self.method.rank_weight
