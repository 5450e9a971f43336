"""BitFit: only biases train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, choice
from autopeft.methods.settle import changed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum


@dataclass(frozen=True)
class BitFit(Method):
    """Trains the biases of the chosen blocks and nothing else.

    Differs from the paper with ``query_only``: the value's bias trains beside the query's, and
    both are a vector of their own that is added to the frozen bias. (The key's bias has no effect:
    it shifts all logits of a query alike.)

    Attributes:
        which: biases of linear and convolutional layers, of norms, all, or ``query_only`` (the
            query and value rows of a ViT's ``qkv``).
    """

    name: ClassVar[str] = "bitfit"
    family: ClassVar[str] = "bias"
    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    summary: ClassVar[str] = "Trains the biases of chosen blocks."
    conflicts: ClassVar[tuple[str, ...]] = ("spafit",)
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 2e-4, 2e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }

    which: str = choice("all", "linear", "norm", "query_only")

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options; where only norms, or no norms, have biases, ``all`` says it too.

        Raises:
            UserError: ``query_only`` on a backbone that has no qkv bias.
        """
        options = super().options(facts)
        if self.which == "query_only":
            if not all(facts.module_biases.get("qkv", (0,))):
                what = f"which = 'query_only' needs a qkv bias, {facts.name} has none"
                raise UserError(what, "method bitfit", "Choose: all, linear, norm.")
            return options
        everything = type(self)("all")
        blocks = range(facts.depth)
        if all(self._count(facts, b) == everything._count(facts, b) for b in blocks):
            options["which"] = "all"
        return options

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """As in ``options``, for these blocks alone."""
        every = cls("all")
        return [
            changed(s, which="all")
            if cls(**s.options).parameter_count(facts, s, readout)
            == every.parameter_count(facts, s, readout)
            else s
            for s in strata
        ]

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if it has such a bias at all."""
        return ("",) if self._count(facts, block) else ()

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """11 D a block of a plain ViT of width D, of which 2 D in its norms; query_only: 2 D."""
        blocks = range(stratum.blocks[0], stratum.blocks[1] + 1)
        return sum(self._count(facts, block) for block in blocks)

    def _count(self, facts: Facts, block: int) -> int:
        norms, total = facts.norm_biases[block], facts.block_biases[block]
        if self.which == "query_only":
            return facts.module_biases["qkv"][block] * 2 // 3
        return {"all": total, "norm": norms, "linear": total - norms}[self.which]

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Opens the biases."""
        names: list[str] = []
        added: dict[str, nn.Parameter] = {}
        for stratum in strata:
            which = stratum.options["which"]
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                if which == "query_only":
                    added |= _open_query(network, network.module_path(block, "qkv"))
                    continue
                for prefix in network.facts.prefixes[block]:
                    names += biases(network.model.get_submodule(prefix), prefix, which)
        return Injection(network.own(names) | added)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Adds the vector of ``query_only`` to the bias; the others are plain already."""
        from autopeft.methods.affine import remove, set_frozen, unhook

        for module in network.model.modules():
            if hasattr(module, "bitfit_qv"):
                set_frozen(module, "bias", module.bias + _spread(module.bitfit_qv))
                unhook(module, cls.name)
                remove(module, ["bitfit_qv"])


def biases(block: nn.Module, prefix: str, which: str) -> list[str]:
    """Full names of a block's biases of one kind: ``all``, ``norm`` or ``linear``."""
    found = []
    for path, module in block.named_modules():
        norm = "norm" in type(module).__name__.lower()
        if which != "all" and norm != (which == "norm"):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" and not parameter.requires_grad:  # an added module's own trains
                found.append(".".join(p for p in (prefix, path, name) if p))
    return found


def _open_query(network: Network, path: str) -> dict[str, nn.Parameter]:
    """Registers what is added to query and value: zeros [2 D]."""
    import torch

    from autopeft.methods.affine import add_parameters

    module = network.model.get_submodule(path)

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out + _spread(module.get_parameter("bitfit_qv")).to(out.dtype)

    hook.owner = BitFit.name  # type: ignore[attr-defined]
    module.register_forward_hook(hook)
    zeros = torch.zeros(module.get_parameter("bias").shape[0] * 2 // 3)
    return add_parameters(module, path, {"bitfit_qv": zeros})


def _spread(vector: Tensor) -> Tensor:
    """[q, v] -> [q, 0, v]."""
    import torch

    query, value = vector.chunk(2)
    return torch.cat([query, torch.zeros_like(query), value])
