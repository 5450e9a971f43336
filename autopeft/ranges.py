"""One field of a search space: a fixed value, choices, or a range, in Optuna's own words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autopeft.errors import UserError, nearest

_FORM = "Write a value, {choices: [...]} or {type: int|float, low: ..., high: ..., log: true}."
_KEYS = ("type", "low", "high", "log", "step")


@dataclass(frozen=True)
class Field:
    """One field, under the one name that it has in the study.

    Attributes:
        name: the study's parameter name: ``lora.r``, ``readout.block``, ``lora.mask.3``.
        where: file and field, for errors.
        distribution: the range; None where the value is fixed.
        value: the fixed value; ``each`` where every block has a yes or no of its own.
        in_blocks: whether the choices are depths, given to the method as numbers of blocks.
        index: the block of a yes or no.
    """

    name: str
    where: str
    distribution: BaseDistribution | None = None
    value: Any = None
    in_blocks: bool = False
    index: int | None = None

    @property
    def key(self) -> str:
        """The name without its section and block: ``r``, ``mask``."""
        return self.name.split(".")[-1 if self.index is None else -2]

    @property
    def each(self) -> bool:
        """Whether it stands for one yes or no a block."""
        return self.distribution is None and isinstance(self.value, str) and self.value == "each"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Every choice, both ends of a range, or the fixed value: what must be valid."""
        if self.distribution is None:
            return (self.value,)
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices
        assert isinstance(self.distribution, (IntDistribution, FloatDistribution))
        return (self.distribution.low, self.distribution.high)

    @property
    def typical(self) -> Any:
        """The first choice, the low end, or yes for one block: what others are tried with."""
        return self.extremes[0] if self.index is None else True

    @property
    def is_range(self) -> bool:
        """Whether it is an int or float range rather than named values."""
        return isinstance(self.distribution, (IntDistribution, FloatDistribution))

    def keep(self, possible: Callable[[Any], bool], why: str) -> Field:
        """The field with only the possible ones of its choices.

        Raises:
            UserError: none is left; ``why`` says what would be possible.
        """
        kept = tuple(value for value in self.extremes if possible(value))
        if not kept:
            listed = ", ".join(map(str, self.extremes))
            raise UserError(f"none of {listed} is possible", self.where, why)
        if not isinstance(self.distribution, CategoricalDistribution):
            return self
        return replace(self, distribution=CategoricalDistribution(kept))

    def contains(self, value: Any) -> bool:
        """Whether a warm start may have this value."""
        if self.distribution is None:
            return bool(value == self.value)
        if isinstance(self.distribution, CategoricalDistribution):
            return any(value == c and type(value) is type(c) for c in self.distribution.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return self.distribution._contains(float(value))

    def draw(self, trial: optuna.trial.BaseTrial) -> Any:
        """The fixed value, or what the trial's sampler suggests."""
        d = self.distribution
        if d is None:
            return self.value
        if isinstance(d, CategoricalDistribution):
            return trial.suggest_categorical(self.name, d.choices)
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.name, d.low, d.high, step=d.step, log=d.log)
        assert isinstance(d, FloatDistribution)
        return trial.suggest_float(self.name, d.low, d.high, step=d.step, log=d.log)


def read_field(name: str, spec: Any, where: str) -> Field:
    """A field as written in YAML.

    Raises:
        UserError: an unknown word, an empty range or a range that is none; it names the field.
    """
    if isinstance(spec, (str, int, float)):  # bool is an int
        return Field(name, where, value=spec)
    if not isinstance(spec, Mapping):
        raise UserError(f"{spec!r} is not understood", where, _FORM)
    if "choices" in spec:
        return Field(name, where, _choices(spec, where))
    if "blocks" in spec:
        cuts = {"choices" if key == "blocks" else key: value for key, value in spec.items()}
        return Field(name, where, _choices(cuts, where), in_blocks=True)
    for key in spec:
        if key not in _KEYS:
            raise UserError(f"unknown word {key!r}", where, nearest(str(key), _KEYS))
    for key in ("type", "low", "high"):
        if key not in spec:
            raise UserError(f"{key!r} is missing", where, _FORM)
    if spec["type"] not in ("int", "float"):
        raise UserError(f"type {spec['type']!r} is unknown", where, "Write int or float.")
    return Field(name, where, _range(spec, where))


def _choices(spec: Mapping[str, Any], where: str) -> CategoricalDistribution:
    others = [key for key in spec if key != "choices"]
    if others:
        raise UserError(f"{others[0]!r} does not go with choices", where, _FORM)
    choices = spec["choices"]
    if not isinstance(choices, list) or not choices:
        raise UserError("there are no choices", where, "Name at least one: {choices: [a, b]}.")
    for choice in choices:
        if not isinstance(choice, (str, int, float)):
            raise UserError(f"choice {choice!r} is not a plain value", where, _FORM)
        if isinstance(choice, float) and not math.isfinite(choice):
            raise UserError(f"choice {choice!r} is not finite", where)
    if len({(type(c), c) for c in choices}) < len(choices):
        raise UserError(f"a choice is given twice in {choices}", where, "Remove one.")
    return CategoricalDistribution(choices)


def _range(spec: Mapping[str, Any], where: str) -> IntDistribution | FloatDistribution:
    kind, log, step = spec["type"], spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        raise UserError(f"log is {log!r}", where, "Write true or false.")
    low, high = (_number(key, spec[key], kind, where) for key in ("low", "high"))
    if low > high:
        raise UserError(f"the range is empty: low {low} > high {high}", where, "Swap them.")
    if log and low <= 0:
        raise UserError(f"a log range cannot start at {low}", where, "low must be above 0.")
    if step is not None:
        step = _number("step", step, kind, where)
        if log or step <= 0:
            raise UserError(f"step {step} is not possible", where, "It is above 0, without log.")
        if abs(round((high - low) / step) - (high - low) / step) > 1e-9:
            raise UserError(
                f"steps of {step} from {low} do not end at {high}", where, "Change high."
            )
    if kind == "int":
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def _number(key: str, value: Any, kind: str, where: str) -> float:
    whole = kind == "int"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{key} is {value!r}, not a number", where)
    if whole and value != int(value):
        raise UserError(f"{key} is {value!r}, not a whole number", where)
    return value


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in a float; without this, 2e-4 would be a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: not YAML, a key given twice, or no mapping.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"is not valid YAML ({' '.join(str(error).split())})", where) from None
    if not isinstance(value, dict):
        raise UserError("holds no search space", where, "It needs a section `methods:`.")
    return value
