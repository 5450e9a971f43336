"""LoRA through peft: W + s B A in chosen modules of chosen blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.methods.method import Injection, Rate, Scored, choice, flag, integer, number
from autopeft.methods.tuner import Peft, Tuner

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.method import Scoring

_REWRITING = ("pissa", "olora")  # what they take out of the base weight is in A and B


@dataclass(frozen=True)
class Lora(Tuner, Scored):
    """Low-rank adaptation: y = W x + s B A x with s = lora_alpha / r.

    A fresh adapter changes nothing. On convolutions A has the layer's kernel and B is 1x1;
    depthwise and grouped convolutions are never targets.

    Attributes:
        r: rank of the update.
        lora_alpha: scale; s = lora_alpha / r, or lora_alpha / sqrt(r) with ``use_rslora``.
        lora_dropout: dropout on the adapter's input while training.
        use_rslora: rank-stabilized scale (Kalajdzievski 2023, arXiv:2312.03732).
        use_dora: weight-decomposed update (Liu et al. 2024, arXiv:2402.09353): one more number an
            output.
        init: ``default`` (A Kaiming-uniform, B zero), ``gaussian`` (A normal, B zero),
            ``orthogonal`` (both nonzero, product zero), or both from W itself: ``pissa`` from its
            largest singular vectors (Meng et al. 2024, arXiv:2404.02948), ``olora`` from its QR
            decomposition (Büyükakyüz 2024, arXiv:2406.01775). The last two take s B A out of the
            frozen weight, and only the exact decompositions are offered: they are computed again
            when an adapter is loaded. ``eva``: A from the training images, the r directions in
            which a layer's inputs are largest in the frozen network (Paischer et al. 2024,
            arXiv:2410.07170), B zero. All layers keep rank r; the paper moves ranks between them
            and stops looking when the directions settle, here at most 128 images are looked at.
    """

    name: ClassVar[str] = "lora"
    family: ClassVar[str] = "low_rank"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    summary: ClassVar[str] = "Adds a low-rank update to the weights of chosen layers."
    exclusive: ClassVar[bool] = False
    rates: ClassVar[Mapping[str, Rate]] = {
        "adamw": Rate(5e-3, 2e-4, 2e-2),
        "sgd": Rate(5e-2, 1e-2, 2e-1),
    }
    shared: ClassVar[tuple[str, ...]] = ("lora_dropout", "use_rslora", "use_dora", "init")
    peft: ClassVar[Peft] = Peft(
        "LoraConfig",
        values={"bias": "none"},
        patterns={"r": "rank_pattern", "lora_alpha": "alpha_pattern"},
        convs="all",
    )

    r: int = integer(8, 1, 256)
    lora_alpha: float = number(16.0, 0.001, 4096.0)
    lora_dropout: float = number(0.0, 0.0, 0.9)
    use_rslora: bool = flag()
    use_dora: bool = flag()
    init: str = choice("default", "gaussian", "orthogonal", *_REWRITING, "eva")

    def alone(self) -> bool:
        """DoRA reads the weights' norms; pissa and olora write into the weights."""
        return self.use_dora or self.init in ("pissa", "olora")

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

    def numbers(self, inputs: int, outputs: int, kernel: int) -> int:
        """r (in + out), + out with DoRA."""
        return self.r * (inputs + outputs) + (outputs if self.use_dora else 0)

    def wrong(self) -> str | None:
        """Orthogonal halves need an even rank."""
        if self.init == "orthogonal" and self.r % 2:
            return f"init = orthogonal needs an even r, not {self.r}"
        return None

    def unfit(self, inputs: int, outputs: int, kernel: int) -> str | None:
        """What decomposes W needs a matrix of rank r at least."""
        if self.init in ("orthogonal", *_REWRITING, "eva") and kernel:
            return f"init = {self.init} is for linear layers, not for convolutions"
        if self.init in _REWRITING and self.r > min(inputs, outputs):
            return f"init = {self.init} needs r of at most {min(inputs, outputs)}, not {self.r}"
        if self.init == "eva" and self.r > inputs:
            return f"init = eva needs r of at most {inputs}, not {self.r}"
        return None

    @classmethod
    def config_values(cls, network: Network, strata: Sequence[Stratum]) -> dict[str, Any]:
        """As ``Tuner``'s, with peft's name and values for ``init``."""
        values = super().config_values(network, strata)
        init = values.pop("init")
        return {**values, "init_lora_weights": True if init in ("default", "eva") else init}

    def looks(self) -> bool:
        """Only for eva."""
        return self.init == "eva"

    @classmethod
    def prepare(
        cls, scoring: Scoring, strata: Sequence[Stratum], readout: Readout
    ) -> dict[str, Tensor]:
        """``PATH.lora_eva``: A of each layer."""
        from autopeft.methods.directions import input_directions

        facts, found = scoring.network.facts, dict[str, Any]()
        places: dict[tuple[int, str], int] = {}
        for stratum in strata:
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                for name in cls(**stratum.options)._chosen(facts, stratum, block):
                    path = scoring.network.module_path(block, name)
                    places[block, path] = int(stratum.options["r"])
        directions = input_directions(scoring, list(places))
        for (_, path), rank in places.items():
            found[f"{path}.lora_eva"] = directions[path][:rank].clone()
        return found

    @classmethod
    def inject_scored(
        cls,
        network: Network,
        strata: Sequence[Stratum],
        readout: Readout,
        fixed: Mapping[str, Tensor],
    ) -> Injection:
        """As ``inject``, A from what ``prepare`` gave; a saved state brings its own A."""
        import torch

        found = cls.inject(network, strata, readout)
        with torch.no_grad():
            for path in cls.targets(network, strata):
                start = fixed.get(f"{path}.lora_eva")
                if start is not None:
                    found.trainable[f"{path}.lora_A.weight"].copy_(start)
        return found

    @classmethod
    def rewrites(cls, strata: Sequence[Stratum]) -> bool:
        """Whether the init takes something out of the base weights."""
        return strata[0].options["init"] in _REWRITING

    @classmethod
    def plain_name(cls, name: str, paths: Sequence[str]) -> str:
        """DoRA's vector is saved without ``.weight``."""
        name = super().plain_name(name, paths)
        return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
