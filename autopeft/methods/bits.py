"""Methods whose outer search says by one bit a block what trains there: FairTune, MemControl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.candidate import Stratum
from autopeft.errors import UserError
from autopeft.methods.method import Injection, Method, Rate, choice, integer
from autopeft.methods.settle import changed

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout

DEEPEST = 48  # blocks that an option has bits for
ALL = 2**DEEPEST - 1
RATE = Rate(1e-4, 1e-5, 1e-3)  # the interval that both papers searched
PARTS = ("norm1", "attn", "norm2", "mlp")
_WITH = {"attn": ("attn", "ls1"), "mlp": ("mlp", "ls2")}  # layer scale goes with its branch


def bits() -> Any:
    """An option with one bit a block: block i is on where bit i is. All are on."""
    option = integer(ALL, 0, ALL)
    # In YAML an unquoted 000111 is the number 73 and 111 a hundred and eleven: a space says words.
    return field(default=ALL, metadata={**option.metadata, "mask": True})


def as_number(value: Any) -> Any:
    """``[1, 0, 1]`` or ``"101"``, block 0 first, as a number; anything else as it is."""
    if isinstance(value, str) and value and set(value) <= {"0", "1"}:
        value = [int(c) for c in value]
    if isinstance(value, (list, tuple)) and all(v in (0, 1) for v in value):
        return sum(int(on) << i for i, on in enumerate(value))
    return value


@dataclass(frozen=True)
class FairTuneMask(Method):
    """Trains whole parts of blocks; a mask says which.

    A block has the parts norm1, attn, norm2 and mlp (layer scale goes with its branch), and each
    part an option with one bit a block: block i trains it where bit i is set. A space samples the
    masks as whole numbers from 0 to 2^L - 1; people may write ``attn: "000111"``, block 0 first.
    ``every`` masks all parts of a block at once: with the others left out it is the paper's search
    with one bit a block. No bit at all is the linear probe; all of them is full fine-tuning
    without embeddings and final norm.

    Attributes:
        norm1: blocks whose first norm trains.
        attn: blocks whose attention trains.
        norm2: blocks whose second norm trains.
        mlp: blocks whose MLP trains.
        every: blocks in which anything trains.
    """

    name: ClassVar[str] = "fairtune_mask"
    family: ClassVar[str] = "sparse"
    paper: ClassVar[str] = "Dutt et al. 2023, arXiv:2310.05055"
    summary: ClassVar[str] = "Trains the norms, attention and MLPs that a mask names."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": RATE}
    exclusive: ClassVar[bool] = True

    norm1: int = bits()
    attn: int = bits()
    norm2: int = bits()
    mlp: int = bits()
    every: int = bits()

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Masks may be lists or words of 0 and 1."""
        return {key: as_number(value) for key, value in raw.items()}

    def options(self, facts: Facts) -> dict[str, Any]:
        """The four masks of this backbone's blocks; ``every`` is worked into them.

        Raises:
            UserError: a CNN, or a ViT with other parameters than these parts.
        """
        where = f"method {self.name}"
        if facts.family != "vit":
            what = f"{facts.name} is a CNN, whose blocks have no attention"
            raise UserError(what, where, "Use it on a ViT.")
        if any(_sizes(facts, block) is None for block in range(facts.depth)):
            what = f"a block of {facts.name} is more than two norms, attention and an MLP"
            raise UserError(what, where, "Use full, or another method.")
        within = self.every & (2**facts.depth - 1)
        return {part: getattr(self, part) & within for part in PARTS} | {"every": ALL}

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """One range from the lowest to the highest bit, with the bits of all."""
        masks = {
            part: sum(_inside(s, cls(**s.options).blocks_of(facts, part)) for s in strata)
            for part in PARTS
        }
        return [_spanning(strata, masks)]

    def blocks_of(self, facts: Facts, part: str) -> int:
        """The blocks in which a part trains and has parameters."""
        found = 0
        for block in range(facts.depth):
            there = part in self.parts(block) and (_sizes(facts, block) or {}).get(part)
            found |= bool(there) << block
        return found

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if a bit of it is set."""
        return ("",) if self.parts(block) else ()

    def parts(self, block: int) -> tuple[str, ...]:
        """The parts of a block that train."""
        return tuple(p for p in PARTS if (getattr(self, p) & self.every) >> block & 1)

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """Sum of the open parts: norm 2 D, attn 4 D² + 4 D, mlp 8 D² + 5 D in a plain ViT."""
        total = 0
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            sizes = _sizes(facts, block) or {}
            total += sum(sizes[part] for part in self.parts(block))
        return total

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Opens all parameters of the named parts."""
        names = []
        for stratum in strata:
            method = cls(**stratum.options)
            for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
                path = network.block_names(block)
                for part in method.parts(block):
                    for child in _WITH.get(part, (part,)):
                        module = network.model.get_submodule(f"{path}.{child}")
                        names += [f"{path}.{child}.{n}" for n, _ in module.named_parameters()]
        return Injection(network.own(names))


def _inside(stratum: Stratum, mask: int) -> int:
    """The bits of a mask that are a stratum's blocks."""
    first, last = stratum.blocks
    return mask & ((1 << last + 1) - (1 << first))


def _spanning(strata: Sequence[Stratum], masks: Mapping[str, int]) -> Stratum:
    """One stratum in the place of all."""
    first, last = min(s.blocks[0] for s in strata), max(s.blocks[1] for s in strata)
    return replace(changed(strata[0], **masks), blocks=(first, last))


def _sizes(facts: Facts, block: int) -> dict[str, int] | None:
    """Parameters of a block's parts; None unless they add up to the block."""
    path, modules = facts.prefixes[block][-1], {"attn": ("qkv", "proj"), "mlp": ("fc1", "fc2")}
    norms = facts.norms[block]
    sizes = {part: norms.get(f"{path}.{part}", 0) for part in PARTS}
    for part, names in modules.items():
        if not all(facts.modules.get(name, ((),) * facts.depth)[block] for name in names):
            return None
        for name in names:
            inputs, outputs = facts.modules[name][block]
            sizes[part] += inputs * outputs + facts.module_biases[name][block]
        inside = f"{path}.{part}."
        sizes[part] += sum(n for norm, n in norms.items() if norm.startswith(inside))
    left = facts.block_params[block] - sum(sizes.values())
    if left not in (0, 2 * facts.dims[block]):  # layer scale: one number a channel and branch
        return None
    return sizes | {part: sizes[part] + left // 2 for part in modules}


@dataclass(frozen=True)
class MemControlBits(Method):
    """Another method's adapter in the blocks whose bit is set, at its default options.

    The same as that method with ``blocks: {mask: [...]}``, but a space can sample it: the mask is
    a whole number from 0 to 2^L - 1, or a word such as ``"000111"``, block 0 first.

    Attributes:
        inner: the method in the blocks that are on.
        bits: blocks that are on.
    """

    name: ClassVar[str] = "memcontrol_bits"
    family: ClassVar[str] = "sparse"
    paper: ClassVar[str] = "Dutt et al. 2024, arXiv:2405.19458"
    summary: ClassVar[str] = "Puts another method into the blocks that a mask names."
    rates: ClassVar[Mapping[str, Rate]] = {"adamw": RATE}
    in_fp32: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True
    wraps: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = ("inner",)

    inner: str = choice("svdiff", "difffit", "lora", "bitfit")
    bits: int = bits()

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The mask may be a list or a word of 0 and 1."""
        return {k: as_number(v) if k == "bits" else v for k, v in raw.items()}

    def options(self, facts: Facts) -> dict[str, Any]:
        """The bits of this backbone's blocks.

        Raises:
            UserError: the inner method is not there, or refuses the backbone.
        """
        self.method().options(facts)
        return {"inner": self.inner, "bits": self.bits & (2**facts.depth - 1)}

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """One range from the lowest to the highest bit, with the bits of all."""
        total = 0
        for stratum in strata:
            me = cls(**stratum.options)
            there = sum(bool(me.sites(facts, b)) << b for b in range(facts.depth))
            total |= _inside(stratum, there)
        return [_spanning(strata, {"bits": total})]

    def method(self) -> Method:
        """The inner method at its defaults."""
        from autopeft.methods.registry import method_named

        return method_named(self.inner, f"method {self.name}").make({})

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """The block, if its bit is set and the inner method has something there."""
        return ("",) if self.bits >> block & 1 and self.method().sites(facts, block) else ()

    def first_block(self, stratum: Stratum) -> int:
        """As the inner method says."""
        return self.method().first_block(stratum)

    def prefix_ok(self, stratum: Stratum) -> bool:
        """As the inner method says."""
        return self.method().prefix_ok(stratum)

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """The inner method's, of the blocks that are on."""
        inner = self.inside(facts, stratum)
        return sum(self.method().parameter_count(facts, s, readout) for s in inner)

    def inside(self, facts: Facts, stratum: Stratum) -> list[Stratum]:
        """The stratum as the inner method's, one for each block that is on."""
        method = self.method()
        options = method.options(facts)
        found = []
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            sites = method.sites(facts, block)
            if self.bits >> block & 1 and sites:
                modules = tuple(sorted(set(sites) - {""}))
                found.append(Stratum((block, block), modules, method.name, options))
        return found

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """The inner method's injection."""
        method = cls(**strata[0].options).method()
        inner = [part for s in strata for part in cls(**s.options).inside(network.facts, s)]
        return type(method).inject(network, inner, readout)

    @classmethod
    def fold(cls, network: Network) -> None:
        """Folds whatever inner methods there are."""
        from autopeft.methods.registry import METHODS

        words = next(f for f in fields(cls) if f.name == "inner").metadata["choices"]
        for word in words:
            if word in METHODS:
                METHODS[word].fold(network)
