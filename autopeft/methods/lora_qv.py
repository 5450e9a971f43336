"""LoRA on query and value alone, as MED-PEFT places it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, flag, integer, number
from autopeft.methods.settle import changed
from autopeft.methods.ssf import final_norms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.adapted import Adapted

_NAMES = ("lora_qv_aq", "lora_qv_av", "lora_qv_bq", "lora_qv_bv")


@dataclass(frozen=True)
class LoraQv(Method):
    """q = Wq x + s Bq Aq x and v = Wv x + s Bv Av x with s = lora_alpha / r; k stays.

    peft cannot address rows of a fused ``qkv``; ``as_lora`` gives the same function as a peft
    adapter of rank 2 r. Both B start at zero. MED-PEFT's recipe: alpha 32 at every rank, dropout
    0.1, the final norm trains too; r = 4 for 1 % of the labels, 8 for 10 % (16 and 32 in two of
    its six cases), 32 for all.

    Attributes:
        r: rank of each of the two updates.
        lora_alpha: scale; s = lora_alpha / r.
        lora_dropout: dropout on the adapter's input while training.
        train_final_norm: the norm in front of the head trains too, where the blocks end at the
            readout.
    """

    name: ClassVar[str] = "lora_qv"
    family: ClassVar[str] = "low_rank"
    paper: ClassVar[str] = "Lian et al. 2024, arXiv:2401.12215"
    summary: ClassVar[str] = "Adds a low-rank update to query and value of each attention."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(1e-3, 2e-4, 5e-3),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }

    r: int = integer(8, 1, 128)
    lora_alpha: float = number(32.0, 0.001, 4096.0)
    lora_dropout: float = number(0.1, 0.0, 0.9)
    train_final_norm: bool = flag(True)

    def options(self, facts: Facts) -> dict[str, Any]:
        """All options.

        Raises:
            UserError: the backbone has no fused qkv layer.
        """
        if "qkv" not in facts.modules:
            what = f"needs the qkv layers of a ViT, {facts.name} has none"
            raise UserError(what, "method lora_qv", "Choose lora.")
        return super().options(facts)

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """The final norm is for the range that ends at the readout; others say what it says."""
        said = [
            s.options["train_final_norm"]
            for s in strata
            if s.blocks[1] == readout.block - 1 and facts.tail_params
        ]
        return [changed(s, train_final_norm=said[0] if said else True) for s in strata]

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if it has a qkv layer."""
        return ("",) if facts.modules["qkv"][block] else ()

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """4 r D a block, and 2 D for the final norm."""
        total = 0
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            if facts.modules["qkv"][block]:
                inputs, outputs = facts.modules["qkv"][block]
                total += 2 * self.r * (inputs + outputs // 3)
        if self.train_final_norm and stratum.blocks[1] == readout.block - 1:
            total += facts.tail_params
        return total

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Adds the factors to each qkv layer."""
        trainable: dict[str, nn.Parameter] = {}
        for stratum in strata:
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                if network.facts.modules["qkv"][block]:
                    path = network.module_path(block, "qkv")
                    trainable |= _add(network.model.get_submodule(path), path, stratum.options)
            if stratum.options["train_final_norm"] and stratum.blocks[1] == readout.block - 1:
                for norm in final_norms(network):
                    own = network.model.get_submodule(norm).named_parameters(recurse=False)
                    trainable |= network.own([f"{norm}.{name}" for name, _ in own])
        return Injection(trainable)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Adds s B A to the rows of query and value."""
        from autopeft.methods.affine import remove
        from autopeft.methods.low_rank import fold_low_rank

        for module in network.model.modules():
            if hasattr(module, "lora_qv_scale"):
                fold_low_rank(module, _factors, cls.name)
                remove(module, (*_NAMES, "lora_qv_scale"))


def _add(module: Any, path: str, options: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Registers A and B for query and value, B = 0."""
    import torch

    from autopeft.methods.affine import add_parameters
    from autopeft.methods.low_rank import add_low_rank, fresh_a

    r, inputs, outputs = int(options["r"]), module.in_features, module.out_features // 3
    values = [fresh_a(r, inputs), fresh_a(r, inputs)]
    values += [torch.zeros(outputs, r), torch.zeros(outputs, r)]
    module.lora_qv_scale = options["lora_alpha"] / r
    add_low_rank(module, _factors, LoraQv.name, float(options["lora_dropout"]))
    return add_parameters(module, path, dict(zip(_NAMES, values, strict=True)))


def _factors(module: Any) -> tuple[Tensor, Tensor]:
    """A = [Aq; Av] and s B, with B = [[Bq, 0], [0, 0], [0, Bv]]: the key's rows are exact zeros.

    One product for both costs no more than two on slices of the output.
    """
    import torch

    bq, bv, s = module.lora_qv_bq, module.lora_qv_bv, module.lora_qv_scale
    width, r = bq.shape
    b = torch.cat([bq * s, bq.new_zeros(2 * width, r)])
    b = torch.cat([b, torch.cat([bv.new_zeros(2 * width, r), bv * s])], 1)
    return torch.cat([module.lora_qv_aq, module.lora_qv_av]), b


def as_lora(adapted: Adapted, network: Network) -> Adapted:
    """The same function as a ``lora`` adapter of rank 2 r, which peft can load.

    peft divides by its own rank, so ``lora_alpha`` doubles too. A trained final norm has no place
    in LoRA: it goes into the head behind it.

    Args:
        adapted: all its strata are ``lora_qv``.
        network: the plain backbone; stays as it is.

    Raises:
        UserError: other methods are in it, or the final norm cannot go into the head.
    """
    import torch

    from autopeft.methods.adapted import build
    from autopeft.methods.canonical import canonical

    if adapted.candidate.method != "lora_qv":
        raise _no_lora(f"{adapted.candidate.method} is not lora_qv alone")
    raw = adapted.candidate.to_dict()
    for stratum in raw["strata"]:
        options = stratum["options"]
        changed = {"r": 2 * options["r"], "lora_alpha": 2 * options["lora_alpha"]}
        changed["lora_dropout"] = options["lora_dropout"]
        stratum.update(method="lora", modules=["qkv"], options=changed)
    made = build(network, canonical(raw, network.facts), adapted.head.out_features, 0, 0)
    mine = adapted.tensors()
    values = {}
    for name in made.trainable:
        path, _, leaf = name.partition(".lora_")
        if leaf:
            module = adapted.network.model.get_submodule(path)
            a, b = _factors(module)
            values[name] = a if leaf.startswith("A") else b / module.lora_qv_scale
        else:
            values[name] = mine[name]
    made.load_tensors({name: value.detach() for name, value in values.items()})
    with torch.no_grad():
        _move_norm(adapted, made)
    return made


def _move_norm(adapted: Adapted, made: Adapted) -> None:
    """head(w' n + b') = head'(w n + b): puts a trained final norm into the head."""
    import torch

    for path in final_norms(made.network):
        old: Any = made.network.model.get_submodule(path)
        new: Any = adapted.network.model.get_submodule(path)
        if torch.equal(old.weight, new.weight) and torch.equal(_bias(old), _bias(new)):
            continue
        ratio = new.weight / old.weight
        if not ratio.isfinite().all() or made.head.in_features != len(ratio):
            raise _no_lora("the trained final norm cannot go into the head")
        head = made.head.weight
        made.set_head(head * ratio, made.head.bias + head @ (_bias(new) - _bias(old) * ratio))


def _bias(norm: Any) -> Tensor:
    bias: Tensor = norm.weight * 0 if getattr(norm, "bias", None) is None else norm.bias
    return bias


def _no_lora(reason: str) -> UserError:
    fix = "Use the adapter folder with autopeft.load_adapter."
    return UserError(f"cannot be exported as lora: {reason}", "method lora_qv", fix)
