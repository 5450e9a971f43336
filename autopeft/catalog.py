"""What ``autopeft methods`` shows: every method on one backbone, and one method in full."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from autopeft.errors import UserError
from autopeft.methods import METHODS, Method, canonical
from autopeft.methods.method import Scored
from autopeft.methods.registry import method_named

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts

# Convolutions alone, and linear layers on maps that are as wide as default sizes need.
_CNNS = ("test_resnet", "convnext_tiny")


@dataclass(frozen=True)
class Line:
    """One method on one backbone.

    Attributes:
        name: the method's name.
        family: its family.
        paper: authors, year and arXiv number.
        parameters: trained parameters at default size on all blocks, the head excluded; None:
            it does not work on the backbone.
        mergeable: whether the result is a plain timm model.
        cached: whether what lies below its blocks is computed once and shared by all trials.
        cnn: ``yes``, ``linear`` (only linear layers, as ConvNeXt has them) or ``no``.
    """

    name: str
    family: str
    paper: str
    parameters: int | None
    mergeable: bool
    cached: bool
    cnn: str


def reference_cnns() -> dict[str, Facts]:
    """Facts of a small ResNet and of a ConvNeXt, whose weights nobody needs."""
    from autopeft.backbones.describe import random_backbone

    return {name: random_backbone(name, 64).facts for name in _CNNS}


def facts_of(backbone: str) -> Facts:
    """Facts of a backbone by name; no weights are needed.

    Raises:
        UserError: timm has no such model, or its layout is not known.
    """
    from autopeft.backbones.catalog import OWN
    from autopeft.backbones.describe import random_backbone
    from autopeft.backbones.weights import load_backbone

    if backbone == OWN:
        return load_backbone(backbone, None, None, True).facts
    try:
        return random_backbone(backbone).facts
    except RuntimeError as error:  # timm: unknown model
        what = " ".join(str(error).split())[:120]
        raise UserError(what, "--backbone", "Give a timm name.") from None


def lines(facts: Facts, cnns: Mapping[str, Facts]) -> list[Line]:
    """All built-in methods on a backbone.

    Args:
        facts: the backbone.
        cnns: ``reference_cnns()``: a ResNet, then a ConvNeXt.
    """
    return [
        Line(
            name,
            method.family,
            method.paper,
            count(name, facts),
            method.mergeable,
            _cached(name, facts),
            _on_cnns(name, cnns),
        )
        for name, method in METHODS.items()
    ]


def count(name: str, facts: Facts) -> int | None:
    """Trained parameters at default size on all blocks; None: not possible on the backbone."""
    if isinstance(why_not(name, facts), str):
        return None
    candidate = canonical({"method": name}, facts)
    return sum(
        METHODS[s.method].make(dict(s.options)).parameter_count(facts, s, candidate.readout)
        for s in candidate.strata
    )


def why_not(name: str, facts: Facts) -> str | None:
    """Why a method at its defaults is not possible on a backbone, or None."""
    try:
        candidate = canonical({"method": name}, facts)
    except UserError as error:
        return error.what
    if METHODS[name].placed and not candidate.strata:
        return "it has no place there"
    return None


def _cached(name: str, facts: Facts) -> bool:
    """Whether the last block alone leaves everything below it a pure function of the image."""
    try:
        candidate = canonical({"method": name, "blocks": 1}, facts)
    except UserError:
        return False
    if not candidate.strata:
        return not METHODS[name].placed  # the linear probe
    methods = [(METHODS[s.method].make(dict(s.options)), s) for s in candidate.strata]
    return all(m.prefix_ok(s) and m.first_block(s) > 0 for m, s in methods)


def _on_cnns(name: str, cnns: Mapping[str, Facts]) -> str:
    works = [why_not(name, facts) is None for facts in cnns.values()]
    if all(works):
        return "yes"
    return "linear" if works[-1] else "no"


# ---- one method -----------------------------------------------------------------------------


def description(name: str, facts: Facts, cnns: Mapping[str, Facts]) -> dict[str, Any]:
    """One method in full, as plain data.

    Raises:
        UserError: no such method (nearest name offered), or one that is not offered, and why.
    """
    method = method_named(name, "methods show")
    backbones = {facts.name: facts, **cnns}
    return {
        "name": name,
        "family": method.family,
        "paper": method.paper,
        "summary": method.summary,
        "about": inspect.cleandoc(method.__doc__ or ""),
        "options": [_option(f, method.defaults()) for f in fields(method)],
        "placement": _placement(method),
        "learning rates": {
            optimizer: {"prior": r.prior, "low": r.low, "high": r.high}
            for optimizer, r in method.rates.items()
        },
        "parameters": {b: count(name, f) for b, f in backbones.items()},
        "parameters by formula": _plain(_first_line(method.parameter_count)),
        "refuses": _refusals(method, backbones),
        "mergeable": method.mergeable,
        "looks at images first": issubclass(method, Scored) and method.make({}).looks(),
        "pausable": method.pausable,
    }


def _option(field: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = field.metadata
    if "choices" in given:
        possible = ", ".join(_word(c) for c in given["choices"])
    else:
        possible = f"{given['low']:g} to {given['high']:g}"
        if given["type"] is int:
            possible = f"{given['low']} to {given['high']}, whole"
    return {"name": field.name, "default": defaults.get(field.name), "possible": possible}


def _placement(method: type[Method]) -> str:
    if not method.placed:
        return "none: only the head trains"
    return "blocks and modules" if method.takes_modules else "blocks"


def _refusals(method: type[Method], backbones: Mapping[str, Facts]) -> list[str]:
    """What it refuses: on these backbones, by options, beside other methods."""
    found = []
    for backbone, facts in backbones.items():
        reason = why_not(method.name, facts)
        if reason:
            found.append(f"{backbone}: {reason}")
    if method.check is not Method.check:
        found.append(f"options: {_first_line(method.check).removeprefix('Refuses ')}")
    if method.exclusive:
        found.append("any other method on its blocks")
    if method.shared:
        found.append(f"other values of {', '.join(method.shared)} elsewhere in one candidate")
    if "adamw" not in method.rates and "sgd" not in method.rates:
        found.append("optimizers: it is solved, not stepped")
    return found


def _plain(line: str) -> str:
    """A docstring's line, unless it speaks of code."""
    return "" if "``" in line else line


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


def text(shown: Mapping[str, Any]) -> str:
    """A description for people."""
    rows = [f"{shown['name']}  ({shown['family']}; {shown['paper']})", "", shown["about"], ""]
    rows.append(f"Placement: {shown['placement']}")
    for option in shown["options"]:
        default = _word(option["default"])
        rows.append(f"Option {option['name']} = {default}; possible: {option['possible']}")
    for optimizer, rate in shown["learning rates"].items():
        low, high = f"{rate['low']:g}", f"{rate['high']:g}"
        rows.append(f"Learning rate with {optimizer}: {rate['prior']:g}, from {low} to {high}")
    rows.append(f"Trained parameters: {shown['parameters by formula']}".rstrip())
    for backbone, number in shown["parameters"].items():
        there = "not possible" if number is None else f"{number:,}"
        rows.append(f"  on {backbone}, all blocks, default size: {there}")
    rows += [f"Refuses {reason}" for reason in shown["refuses"]]
    rows.append(f"Mergeable: {_word(shown['mergeable'])}")
    if shown["looks at images first"]:
        rows.append("Looks at training images before the first epoch.")
    if not shown["pausable"]:
        rows.append("Trained in one stretch: it cannot be stopped early and go on later.")
    return "\n".join(rows)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"
