"""LoRA through peft: W + s B A in chosen modules of chosen blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, flag, integer, number

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

ADAPTER = "default"
# peft's own saved names lack the adapter's name: ``lora_A.default.weight`` -> ``lora_A.weight``.
_OPTION_OF_ALL = ("lora_dropout", "use_rslora", "use_dora")


@dataclass(frozen=True)
class Lora(Method):
    """Low-rank adaptation: y = W x + s B A x with s = lora_alpha / r.

    B starts at zero, so a fresh adapter changes nothing. On convolutions A has the layer's kernel
    and B is 1x1; depthwise and grouped convolutions are never targets.

    Attributes:
        r: rank of the update.
        lora_alpha: scale; s = lora_alpha / r, or lora_alpha / sqrt(r) with ``use_rslora``.
        lora_dropout: dropout on the adapter's input while training.
        use_rslora: rank-stabilized scale (Kalajdzievski 2023).
        use_dora: weight-decomposed update (Liu et al. 2024): one more number an output.
    """

    name: ClassVar[str] = "lora"
    family: ClassVar[str] = "low_rank"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    summary: ClassVar[str] = "Adds a low-rank update to the weights of chosen layers."
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 2e-4, 2e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }
    takes_modules: ClassVar[bool] = True
    wraps: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = _OPTION_OF_ALL

    r: int = integer(8, 1, 256)
    lora_alpha: float = number(16.0, 0.001, 4096.0)
    lora_dropout: float = number(0.0, 0.0, 0.9)
    use_rslora: bool = flag()
    use_dora: bool = flag()

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """``lora_alpha`` defaults to 2 r and may be written as a multiple (``"r"``, ``"2r"``)."""
        filled = dict(raw)
        r = filled.get("r", 8)
        alpha = filled.get("lora_alpha", "2r")
        multiple = re.fullmatch(r"([0-9.]*)r", alpha) if isinstance(alpha, str) else None
        if multiple and isinstance(r, int):
            try:
                filled["lora_alpha"] = float(multiple[1] or 1) * r
            except ValueError:
                filled["lora_alpha"] = alpha
        return filled

    def options(self, facts: Facts) -> dict[str, Any]:
        """Canonical options: at rank 1 both scalings are the same."""
        options = super().options(facts)
        if self.r == 1:
            options["use_rslora"] = False
        return options

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """Sum of r (in + out) over the targets, + out with DoRA; in counts the kernel."""
        total = 0
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            for name in stratum.modules:
                if facts.modules[name][block]:
                    inputs, outputs = facts.modules[name][block]
                    total += self.r * (inputs + outputs) + (outputs if self.use_dora else 0)
        return total

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Wraps the target modules of all strata with one peft config."""
        from peft.tuners.lora import LoraLayer, LoraModel

        config = lora_config(network, strata, readout)
        # The head is ours; in the config it only tells peft where to find it in a saved folder.
        config.modules_to_save = None
        LoraModel(network.model, config, ADAPTER)
        # peft leaves its config on the model; a plain timm model has no such attribute.
        del network.model.peft_config
        hits = {n for n, m in network.model.named_modules() if isinstance(m, LoraLayer)}
        expected = set(_targets(network, strata))
        assert hits == expected, f"peft wrapped {sorted(hits ^ expected)} against the plan"
        trainable = {
            name.replace(f".{ADAPTER}", ""): parameter
            for name, parameter in network.model.named_parameters()
            if ".lora_" in name
        }
        return Injection({_peft_name(k): v for k, v in trainable.items()})

    @classmethod
    def fold(cls, network: Network) -> None:
        """Merges every LoRA layer into its base layer and puts the base layer back."""
        from peft.tuners.lora import LoraLayer

        for path, layer in list(network.model.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge(safe_merge=True)
                parent, _, leaf = path.rpartition(".")
                setattr(network.model.get_submodule(parent), leaf, layer.get_base_layer())


def lora_config(network: Network, strata: Sequence[Stratum], readout: Readout) -> Any:
    """One ``peft.LoraConfig`` for all LoRA strata of a candidate.

    Ranks and scales that differ from the first stratum's go into peft's patterns. With timm's own
    head the classifier is in ``modules_to_save``, so that a folder holds it as peft expects.
    """
    from peft import LoraConfig

    facts = network.facts
    own = facts.is_own_readout(readout.block, readout.pool)
    first = strata[0].options
    ranks, alphas = {}, {}
    for stratum in strata[1:]:
        pattern = _regex(_targets(network, [stratum]))
        if stratum.options["r"] != first["r"]:
            ranks[pattern] = int(stratum.options["r"])
        if stratum.options["lora_alpha"] != first["lora_alpha"]:
            alphas[pattern] = _plain(stratum.options["lora_alpha"])
    return LoraConfig(
        r=int(first["r"]),
        lora_alpha=_plain(first["lora_alpha"]),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        target_modules=_regex(_targets(network, strata)),
        modules_to_save=[facts.classifier] if own else None,
        bias="none",
        **{k: first[k] for k in _OPTION_OF_ALL},
    )


def _targets(network: Network, strata: Sequence[Stratum]) -> list[str]:
    """Module paths that the strata name, in network order."""
    paths = []
    for stratum in strata:
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            for name in stratum.modules:
                if network.facts.modules[name][block]:
                    paths.append(network.module_path(block, name))
    if not paths:
        raise UserError("has no module to adapt", "method lora", "Name other blocks or modules.")
    return paths


def _regex(paths: Sequence[str]) -> str:
    """An anchored pattern that matches exactly these paths, blocks with equal rest as one."""
    rests: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        found = re.match(r"(.*?\.)(\d+(?:\.\d+)?)(\..*)", path)
        key = (found[1], found[3]) if found else (path, "")
        rests.setdefault(key, []).append(found[2] if found else "")
    parts: dict[tuple[str, str], list[str]] = {}
    for (start, rest), blocks in rests.items():
        numbers = "|".join(re.escape(b) for b in blocks)
        parts.setdefault((start, numbers), []).append(re.escape(rest))
    return "|".join(
        f"{re.escape(start)}({numbers})({'|'.join(ends)})"
        for (start, numbers), ends in parts.items()
    )


def _peft_name(name: str) -> str:
    """The name under which peft saves a LoRA parameter (DoRA's vector has no ``.weight``)."""
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def _plain(alpha: float) -> float | int:
    return int(alpha) if float(alpha).is_integer() else alpha
