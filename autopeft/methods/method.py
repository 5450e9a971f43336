"""The contract of a method: a small frozen dataclass whose fields are its options. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from autopeft.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autopeft.backbones.facts import Facts
    from autopeft.backbones.network import Network
    from autopeft.candidate import Readout, Stratum
    from autopeft.methods.adapted import Adapted


@dataclass(frozen=True)
class Rate:
    """A learning rate to start from and the range worth searching (log-uniform)."""

    prior: float
    low: float
    high: float


@dataclass(frozen=True)
class Injection:
    """What a method did to a network.

    Attributes:
        trainable: name -> parameter that trains, the head excluded. A name starts with the plain
            path of the module that it changes, so that its block can be read from it.
        fixed: name -> tensor that does not train but cannot be computed again from options and
            backbone (which entries a mask selects, a frozen random projection). Saved with the
            adapter; ``load_tensors`` writes into it in place.
        extra_loss: a loss [scalar] to add at each step, or None.
        after_step: called after each optimizer step, gradients still there, with (steps done
            before it, steps of the whole schedule), or None.
    """

    trainable: dict[str, nn.Parameter]
    fixed: dict[str, Tensor] = field(default_factory=dict)
    extra_loss: Callable[[], Tensor] | None = None
    after_step: Callable[[int, int], None] | None = None


class Scoring(Protocol):
    """What a method may look at before it starts: training images only, their plain views.

    Attributes:
        network: the resident backbone; fork it, never change it.
        seed: differs between repeats and between candidates.
    """

    network: Network
    seed: int

    def head(self) -> tuple[Tensor, Tensor]:
        """Weight [C, d] and bias [C] of the linear probe at the candidate's readout."""

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized pixels [b, 3, S, S] and labels [b, C or 1], in one fixed order.

        Args:
            size: images a batch.
            limit: at most so many images, spread evenly over the training rows.
        """

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The task's mean loss [scalar]; missing labels are left out."""

    def fine_tune(self, adapted: Adapted, epochs: int, lr: float) -> None:
        """Trains an adapter in place on the training rows."""

    def cached(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gave for this key; candidates of one worker share it."""


def integer(default: int, low: int, high: int) -> Any:
    """An option that is a whole number in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high, "type": int})


def number(default: float, low: float, high: float) -> Any:
    """An option that is a real number in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high, "type": float})


def choice(default: str, *others: str) -> Any:
    """An option that is one of some words; the first is the default."""
    return field(default=default, metadata={"choices": (default, *others)})


def flag(default: bool = False) -> Any:
    """An option that is true or false."""
    return field(default=default, metadata={"choices": (True, False)})


def checked(option: Field[Any], value: Any, where: str) -> Any:
    """One option's value in its own type, floats rounded as fingerprints round them.

    Raises:
        UserError: the value is out of range; the message names option and range.
    """
    choices = option.metadata.get("choices")
    if choices:
        if isinstance(value, type(choices[0])) and value in choices:
            return value
        listed = ", ".join(str(c).lower() if isinstance(c, bool) else c for c in choices)
        raise UserError(f"{option.name} = {value!r} is not possible", where, f"Choose: {listed}.")
    kind, low, high = (option.metadata[k] for k in ("type", "low", "high"))
    number_like = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number_like and low <= value <= high and kind(value) == value:
        return int(value) if kind is int else rounded(value)
    word = "a whole number" if kind is int else "a number"
    raise UserError(
        f"{option.name} = {value!r} is not possible",
        where,
        f"It must be {word} from {low:g} to {high:g}.",
    )


def rounded(value: float) -> float:
    """A float with the six significant digits that a fingerprint keeps."""
    return float(f"{float(value):.6g}")


@dataclass(frozen=True)
class Method:
    """One PEFT method; an instance holds the options of one stratum.

    A new method is a subclass in its own file: class variables below, options as fields made with
    ``integer``, ``number``, ``choice`` or ``flag``, and ``inject``.

    Attributes:
        name: lower-case name, peft's own where peft has the method.
        family: cluster of related methods (``low_rank``, ``bias`` ...).
        paper: authors, year and arXiv number.
        summary: one sentence for people.
        rates: optimizer -> learning-rate prior and range.
        mergeable: whether the result folds into a plain timm state dict.
        takes_modules: whether ``modules`` selects modules inside a block.
        takes_grouped: whether they may be convolutions of several groups, e.g. depthwise ones.
        placed: whether the method has blocks at all.
        exclusive: whether it bears no other method on its blocks (see ``alone`` for options).
        one_per_layer: whether no second method of this kind can be on one module.
        in_fp32: whether a low number format would lose part of its effect: a small change of a
            rounded weight or output is rounded away. Such candidates train in fp32.
        conflicts: names of methods that cannot share a block with it, because both change the same
            numbers; one of the two names the other.
        shared: options that must be equal in all strata of this method in one candidate.
        pausable: whether training can stop at an epoch and go on later from what trains, what is
            fixed and the optimizer's state; else it runs in one stretch.
        wraps: whether ``inject`` replaces modules; such methods come after those that do not.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    rates: ClassVar[Mapping[str, Rate]]
    mergeable: ClassVar[bool] = True
    takes_modules: ClassVar[bool] = False
    takes_grouped: ClassVar[bool] = False
    placed: ClassVar[bool] = True
    exclusive: ClassVar[bool] = False
    one_per_layer: ClassVar[bool] = False
    in_fp32: ClassVar[bool] = False
    conflicts: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    pausable: ClassVar[bool] = True
    wraps: ClassVar[bool] = False

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Fills defaults that depend on other options; called before validation."""
        return dict(raw)

    @classmethod
    def make(cls, raw: Mapping[str, Any]) -> Self:
        """An instance from plain options, validated.

        Raises:
            UserError: an unknown option (nearest name offered) or a value out of range.
        """
        where = f"method {cls.name}"
        known = {f.name: f for f in fields(cls)}
        for key in raw:
            if key not in known:
                raise UserError(f"unknown option {key!r}", where, nearest(key, known))
        filled = cls.complete(raw)
        return cls(**{k: checked(known[k], v, where) for k, v in filled.items()})

    def alone(self) -> bool:
        """Whether, with these options, it bears no other method on its blocks."""
        return self.exclusive

    @classmethod
    def check_all(cls, strata: Sequence[Stratum]) -> None:
        """Refuses strata of this method that do not go together.

        Raises:
            UserError: says why.
        """

    def options(self, facts: Facts) -> dict[str, Any]:
        """All options in canonical form; options without effect on this backbone hold defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def sites(self, facts: Facts, block: int) -> tuple[str, ...]:
        """Names of the places in ``block`` that this method can change; () if there are none.

        A method that takes no modules answers ``("",)``: the block as a whole.
        """
        if not self.takes_modules:
            return ("",)
        return tuple(name for name, shapes in facts.modules.items() if shapes[block])

    def check(self, facts: Facts, stratum: Stratum) -> None:
        """Refuses options that do not go with the places, e.g. a size that does not divide.

        Raises:
            UserError: says why; ``canonical`` calls this for each stratum.
        """

    @classmethod
    def settled(
        cls, facts: Facts, strata: Sequence[Stratum], readout: Readout
    ) -> Sequence[Stratum]:
        """This method's strata in the one spelling that stands for all of the same network.

        An option that changes nothing at these places holds its default, so that one adapter has
        one fingerprint. What comes back is cut and merged as all strata are, and asked again
        until it stays as it is.

        Args:
            facts: the backbone.
            strata: all of this method's in a candidate, sorted, below the readout.
            readout: where the head reads.
        """
        return strata

    def first_block(self, stratum: Stratum) -> int:
        """Lowest block that the method reads a parameter into or writes to."""
        return stratum.blocks[0]

    def prefix_ok(self, stratum: Stratum) -> bool:
        """Whether everything below ``first_block`` stays a pure function of the image."""
        return True

    def parameter_count(self, facts: Facts, stratum: Stratum, readout: Readout) -> int:
        """Number of trained parameters by formula, the head excluded."""
        raise NotImplementedError

    @classmethod
    def inject(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Injection:
        """Opens or adds this method's parameters in a forked network, for all its strata at once.

        Args:
            network: a fork; its tensors are shared with the resident one, so a parameter that
                trains must be made the fork's own first (``network.own``).
            strata: this method's strata of the candidate, sorted.
            readout: where the head reads.
        """
        raise NotImplementedError

    @classmethod
    def fold(cls, network: Network) -> None:
        """Folds what ``inject`` added into the plain parameters of a network of its own."""

    @classmethod
    def peft_config(cls, network: Network, strata: Sequence[Stratum], readout: Readout) -> Any:
        """The config with which ``peft`` alone can load what ``inject`` added; None: it cannot."""
        return None

    @classmethod
    def peft_name(cls, name: str) -> str:
        """Name in a folder that peft loads of what is called ``name`` in the injection."""
        return f"base_model.model.{name}"

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Option -> default value."""
        return {f.name: f.default for f in fields(cls) if f.default is not MISSING}


@dataclass(frozen=True)
class Scored(Method):
    """A method that looks at training images before it starts, e.g. to choose what trains.

    It has ``prepare`` and ``inject_scored`` in the place of ``inject``.
    """

    def looks(self) -> bool:
        """Whether, with these options, it does; else ``inject`` is asked."""
        return True

    @classmethod
    def prepare(
        cls, scoring: Scoring, strata: Sequence[Stratum], readout: Readout
    ) -> dict[str, Tensor]:
        """What the looking gave, by name; called once, before the first epoch.

        It becomes part of the injection's ``fixed``, so it is saved, and given back to
        ``inject_scored`` when a state or an adapter is loaded.
        """
        raise NotImplementedError

    @classmethod
    def inject_scored(
        cls,
        network: Network,
        strata: Sequence[Stratum],
        readout: Readout,
        fixed: Mapping[str, Tensor],
    ) -> Injection:
        """As ``inject``, with what ``prepare`` gave (other names may be in ``fixed`` too)."""
        raise NotImplementedError
