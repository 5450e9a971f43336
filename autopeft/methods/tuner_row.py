"""What a row of the table of peft's methods is, and the class that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from autopeft.methods.method import Rate, rounded
from autopeft.methods.settle import changed, clipped, shapes_of
from autopeft.methods.tuner import Peft, Tuner, kernel_of, regex

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum

# What peft has and a timm model cannot use, or not honestly.
_TEXT = "it changes the input of a text model"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "lily": "its router averages over the batch, so what an image gets depends on the others",
        "prompt_tuning": _TEXT,
        "prefix_tuning": _TEXT,
        "p_tuning": _TEXT,
        "multitask_prompt_tuning": _TEXT,
        "cartridge": _TEXT,
        "cpt": _TEXT,
        "adaption_prompt": "it is for Llama-like models",
        "xlora": "it mixes adapters of a text model",
        "shadow": "it is for decoders only",
        "poly": "its forward pass needs task numbers",
        "trainable_tokens": "it trains rows of an embedding table",
    }
)

Rule = Callable[[Any, int, int, int], "str | None"]  # options, fan in, outputs, kernel

# Family -> learning-rate prior and range for AdamW.
GROUPS: Mapping[str, Rate] = MappingProxyType(
    {
        "low_rank": Rate(5e-3, 2e-4, 2e-2),
        "vector": Rate(5e-3, 5e-4, 5e-2),
        "orthogonal": Rate(1e-3, 1e-4, 1e-2),
        "spectral": Rate(1e-2, 1e-3, 1e-1),
        "sparse": Rate(1e-3, 1e-5, 5e-3),
    }
)


@dataclass(frozen=True)
class Row:
    """One tuner.

    Attributes:
        name: peft's own, lower case.
        family: decides the learning rates.
        paper: authors, year and where.
        summary: one sentence for people.
        formula: what it computes; W [out, in] is the base weight, W' what takes its place.
        peft: config class, fixed values, capabilities.
        numbers: (options, fan in, outputs, kernel) -> parameters of a layer.
        options: the fields.
        once: parameters that all layers share.
        wrong: options -> why they contradict each other, or None.
        unfit: (options, fan in, outputs, kernel) -> why a layer's size does not fit, or None.
        parent: a class with more behavior.
        exact: whether a fresh adapter changes nothing.
    """

    name: str
    family: str
    paper: str
    summary: str
    formula: str
    peft: Peft
    numbers: Callable[[Any, int, int, int], int]
    options: Mapping[str, Any]
    once: Callable[[Any], int] | None = None
    wrong: Callable[[Any], str | None] | None = None
    unfit: Rule | None = None
    parent: type[Tuner] = Tuner
    exact: bool = True


class Osf(Tuner):
    """The number of frozen directions depends on a layer's size; the option is what trains."""

    @classmethod
    def config_values(cls, network: Network, strata: Sequence[Stratum]) -> dict[str, Any]:
        """``effective_rank`` = min(in, out) - k, layer by layer."""
        ranks: dict[int, list[str]] = {}
        for stratum in strata:
            for path in cls.targets(network, [stratum]):
                size = min(network.model.get_submodule(path).weight.shape)
                ranks.setdefault(size - int(stratum.options["k"]), []).append(path)
        # peft searches the pattern anywhere in the path.
        patterns = {f"^({regex(paths)})$": rank for rank, paths in ranks.items()}
        return {"effective_rank": min(ranks), "rank_pattern": patterns}


class Miss(Tuner):
    """``variant`` goes into peft's ``init_weights``."""

    @classmethod
    def config_values(cls, network: Network, strata: Sequence[Stratum]) -> dict[str, Any]:
        """See the class."""
        values = super().config_values(network, strata)
        variant = values.pop("variant")
        return {**values, "init_weights": True if variant == "plain" else variant}


class Adamss(Tuner):
    """Its projection has at most as many directions as a layer's weight and bias have."""

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """``r`` and ``num_subspaces`` up to what the layers have."""
        shapes = shapes_of(facts, strata)
        rank = max(min(n, i + 1) for i, n in shapes)
        groups = max(n for _, n in shapes)
        found = [clipped(cls, s, "r", rank) for s in strata]
        return [clipped(cls, s, "num_subspaces", groups) for s in found]


class LoKr(Tuner):
    """From some rank on its second factor is whole, and the rank is only in the scale."""

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """Such a rank is the default (or the smallest), with alpha / r as it was."""
        default, ends = (
            cls.defaults()["r"],
            next(f.metadata for f in fields(cls) if f.name == "alpha"),
        )
        found = []
        for stratum in strata:
            r, alpha = stratum.options["r"], stratum.options["alpha"]
            least = cls._whole(facts, stratum)
            rank = max(least, default)
            scaled = rounded(alpha * rank / r)
            if r >= least and ends["low"] <= scaled <= ends["high"]:
                stratum = changed(stratum, r=rank, alpha=scaled)
            found.append(stratum)
        return found

    @classmethod
    def _whole(cls, facts: Facts, stratum: Stratum) -> int:
        """The smallest rank at which no layer's second factor is of low rank."""
        sides = [1]
        for block in range(stratum.blocks[0], stratum.blocks[1] + 1):
            for name in cls(**stratum.options)._chosen(facts, stratum, block):
                inputs, outputs = cls.layers_of(facts)[name][block]
                window = max(kernel_of(facts, name, block), 1) ** 2
                sides.append(max(_split(outputs)[1], _split(inputs // window)[1]))
        return -(-max(sides) // 2)


def divides(option: str, both: bool = True) -> Rule:
    """A rule: the option's value divides inputs (and outputs)."""

    def rule(o: Any, i: int, n: int, k: int) -> str | None:
        value = getattr(o, option)
        if i % value or (both and n % value):
            return f"{option} = {value} must divide inputs{' and outputs' if both else ''}"
        return None

    return rule


def at_most(option: str, limit: Callable[[int, int], int], words: str) -> Rule:
    """A rule: the option's value is at most a number that depends on the layer."""

    def rule(o: Any, i: int, n: int, k: int) -> str | None:
        value = getattr(o, option)
        if value > limit(i, n):
            return f"{option} = {value} must be at most {words} = {limit(i, n)}"
        return None

    return rule


def method_of(row: Row) -> type[Tuner]:
    """The method class of a row."""
    space: dict[str, Any] = {
        "name": row.name,
        "family": row.family,
        "paper": row.paper,
        "summary": row.summary,
        "rates": {"adamw": GROUPS[row.family]},
        "peft": row.peft,
        "exclusive": not row.peft.beside,
        "takes_grouped": row.peft.grouped,
        "in_fp32": row.peft.in_fp32,
        "shared": tuple(k for k in row.options if k not in row.peft.patterns),
        "numbers": row.numbers,
        "__doc__": f"{row.summary}\n\n{row.formula}\n\n{row.paper}.",
        "__module__": __name__,
    }
    hooks = {"once": row.once, "wrong": row.wrong, "unfit": row.unfit}
    space |= {name: hook for name, hook in hooks.items() if hook}
    columns = [(name, Any, option) for name, option in row.options.items()]
    return make_dataclass(
        row.name.title().replace("_", ""),
        columns,
        bases=(row.parent,),
        namespace=space,
        frozen=True,
    )


# -- counts and rules of single rows: (options, fan in, outputs, kernel) --------------------------


def low_rank(o: Any, i: int, n: int, k: int) -> int:
    """Two factors of rank r."""
    return int(o.r * (i + n))


def lokr_of(o: Any, i: int, n: int, k: int) -> int:
    """W1 (x) W2, both dimensions split squarely; W2 of rank r if that is less."""
    window = max(k, 1) ** 2
    (n1, n2), (i1, i2) = _split(n), _split(i // window)
    second = n2 * i2 * window if o.r >= max(n2, i2) / 2 else o.r * (n2 + i2 * window)
    return int(n1 * i1 + second)


def _split(size: int) -> tuple[int, int]:
    """The most square factors of a number, the smaller one first."""
    small = max(d for d in range(1, int(size**0.5) + 1) if size % d == 0)
    return small, size // small


def boft_of(o: Any, i: int, n: int, k: int) -> str | None:
    """One wide layer did not finish two steps and a merge in 40 s."""
    if k and i > 2048:
        return "a convolution may have at most 2048 inputs, it is too slow beyond"
    return divides("boft_block_size", both=False)(o, i, n, k)


def miss_of(o: Any, i: int, n: int, k: int) -> str | None:
    """The block of plain MiSS may be padded, the other one not."""
    if o.variant == "bat":
        return divides("r")(o, i, n, k)
    return at_most("r", lambda i, n: i, "the inputs")(o, i, n, k)


def entries(i: int, n: int) -> int:
    """Entries of a weight."""
    return i * n


def parts(o: Any, n: int) -> int:
    """AdaMSS: groups of outputs."""
    return min(int(o.num_subspaces), n)


def road_of(o: Any, i: int, n: int, k: int) -> str | None:
    """Groups of outputs have one size."""
    return f"group_size = {o.group_size} must divide outputs" if n % o.group_size else None


def shira_of(o: Any, i: int, n: int, k: int) -> str | None:
    """peft counts the entries as LoRA's numbers."""
    return f"r = {o.r} asks for more entries than W has" if o.r * (i + n) > i * n else None


def supertuning_of(o: Any, i: int, n: int, k: int) -> str | None:
    """At least one entry."""
    return None if int(i * n * (1 - o.sparsity)) else f"sparsity = {o.sparsity:g} leaves no entry"
