"""``canonical``: the only maker of candidates. Two spellings of one adapter give one candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from autopeft.candidate import Candidate, Readout, Stratum, Train
from autopeft.errors import UserError, nearest
from autopeft.methods.interpolation import read_post
from autopeft.methods.method import rounded
from autopeft.methods.placement import Part, blocks_named, modules_named, settled, strata_of
from autopeft.methods.registry import METHODS, method_named

if TYPE_CHECKING:
    from autopeft.backbones.facts import Facts

_WHERE = "candidate"
_PLACE = ("method", "blocks", "first_block", "last_block", "modules", "options")
_OUTER = ("v", "strata", "train", "readout", "readout_block", "readout_pool", "post")
# (lowest, highest, whether the lowest itself is allowed)
_RANGES = {
    "lr": (0.0, 10.0, False),
    "weight_decay": (0.0, 1.0, True),
    "layer_decay": (0.0, 1.0, False),
    "drop_path": (0.0, 0.9, True),
    "label_smoothing": (0.0, 0.5, True),
}
_WITH_GROUPS = {"plain": "group", "label": "label_x_group"}
_PROBE_LOSSES = ("bce", "weighted")


def canonical(raw: Mapping[str, Any], facts: Facts) -> Candidate:
    """Makes the candidate that a mapping means, on one backbone.

    ``raw`` is flat, ``{"method": "lora", "blocks": [6, 11], "modules": ["qkv"], "r": 8,
    "lr": 1e-3, "readout": {"block": 9}}``; or it has ``"strata": [...]``, each with the same
    placement keys; or it is ``Candidate.to_dict()``. Options may be scoped (``"lora.r"``).
    ``"post": {"method": "wise_ft", "alpha": 0.5}`` scores what lies between frozen and trained.
    Defaults are filled in, strata end below the readout, empty ones go, equal neighbors become
    one, and options and fields that change nothing hold their default (``Method.settled``).
    Without a stratum left it is the linear probe.

    Args:
        raw: plain values, from a space, a person or ``to_dict``.
        facts: the backbone's facts.

    Raises:
        UserError: unknown method, option, module, block or value; it names the range or the
            nearest name.
    """
    known = {*_PLACE, *_OUTER, *_RANGES, *(f.name for f in fields(Train))}
    if raw.get("v", 1) != 1:
        raise UserError(f"version {raw['v']!r} is unknown", _WHERE, "Update autopeft.")
    readout = _readout(raw, facts)
    outer = {k: v for k, v in raw.items() if k not in _OUTER}
    inline = {k: outer.pop(k) for k in list(outer) if k in _TRAIN_NAMES}
    strata = strata_of(_parts(raw, outer, facts, readout.block, known), facts)
    strata = settled(strata, facts, readout)
    train = {**_mapping(raw.get("train"), "train"), **inline}
    return Candidate(
        strata, _train(train, strata, readout), readout, read_post(raw.get("post"), strata)
    )


_TRAIN_NAMES = frozenset(f.name for f in fields(Train))


def _readout(raw: Mapping[str, Any], facts: Facts) -> Readout:
    """The readout, timm's own unless asked otherwise."""
    spec = _mapping(raw.get("readout"), "readout")
    for key in spec:
        if key not in ("block", "pool"):
            raise UserError(f"unknown field {key!r}", "readout", nearest(key, ("block", "pool")))
    block = spec.get("block", raw.get("readout_block"))
    pool = spec.get("pool", raw.get("readout_pool"))
    block = facts.depth if block is None else block
    pool = facts.own_pool if pool is None else pool
    whole = isinstance(block, int) and not isinstance(block, bool)
    if not whole or not 1 <= block <= facts.depth:
        what, fix = f"block = {block!r} is not possible", f"It must be from 1 to {facts.depth}."
        raise UserError(what, "readout", fix)
    if pool not in facts.pools:
        raise UserError(
            f"pool = {pool!r} is not possible", "readout", nearest(str(pool), facts.pools)
        )
    return Readout(block, pool)


def _parts(
    raw: Mapping[str, Any], outer: Mapping[str, Any], facts: Facts, stop: int, known: set[str]
) -> list[Part]:
    """The strata as written, each checked by its method."""
    if raw.get("strata") is None:
        if "method" not in outer:
            raise UserError("no method is named", _WHERE, nearest("", METHODS))
        return _part(outer, facts, stop, known)
    if outer:
        key = next(iter(outer))
        if key in _PLACE:
            raise UserError(f"{key!r} is given beside strata", _WHERE, "Put it into a stratum.")
        raise UserError(f"unknown field {key!r}", _WHERE, nearest(key, known))
    if not isinstance(raw["strata"], (list, tuple)):
        raise UserError("strata is no list", _WHERE, "Write a list of mappings.")
    specs = [_mapping(s, "a stratum") for s in raw["strata"]]
    return [part for s in specs for part in _part(s, facts, stop, set(_PLACE))]


def _part(spec: Mapping[str, Any], facts: Facts, stop: int, known: set[str]) -> list[Part]:
    """One stratum as written; none for a method without a place."""
    if "method" not in spec:
        raise UserError("a stratum names no method", _WHERE, nearest("", METHODS))
    method = method_named(spec["method"], _WHERE)
    options = {k: v for k, v in spec.items() if k not in _PLACE}
    options = {**_mapping(spec.get("options"), "options"), **_unscoped(options, method.name)}
    names = {f.name for f in fields(method)}
    for key in options:
        if key not in names:
            where = f"method {method.name}"
            raise UserError(f"unknown option {key!r}", where, nearest(key, names | known))
    blocks = spec.get("blocks")
    ends = {k: spec[k] for k in ("first_block", "last_block") if k in spec}
    if ends and blocks is not None:
        raise UserError("blocks and first_block are both given", _WHERE, "Give one of them.")
    instance = method.make(options)
    where_blocks = blocks_named(ends or blocks, facts, stop)
    modules = modules_named(spec.get("modules"), facts, method)
    return [Part(instance, where_blocks, modules)] if method.placed else []


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    """A section of the candidate; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} = {value!r} is no mapping", _WHERE, "Write `field: value` pairs.")
    return value


def _unscoped(options: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Options with their method's prefix taken off (``lora.r`` -> ``r``)."""
    plain = {}
    for key, value in options.items():
        scope, dot, name = str(key).partition(".")
        if dot and scope != method and scope in METHODS:
            what = f"option {key!r} belongs to {scope}, but the method is {method}"
            raise UserError(what, _WHERE, "Leave it out.")
        plain[name if dot and scope == method else key] = value
    return plain


def _train(raw: Mapping[str, Any], strata: tuple[Stratum, ...], readout: Readout) -> Train:
    """Training fields: checked, defaults of the method filled in, idle ones at their default."""
    values: dict[str, Any] = {}
    hints = get_type_hints(Train)
    for key, value in raw.items():
        if key not in hints:
            raise UserError(f"unknown field {key!r}", "train", nearest(key, hints))
        if value is None:
            continue
        if hints[key] is bool:
            values[key] = _yes_or_no(key, value)
        else:
            values[key] = _number(key, value) if key in _RANGES else _word(key, value, hints[key])
    if not strata:
        return _probe(values)
    optimizer = values.setdefault("optimizer", Train.optimizer)
    if optimizer == "lbfgs":
        what = "optimizer = 'lbfgs' trains linear_probe only"
        raise UserError(what, "train", "Choose adamw or sgd.")
    if "lr" not in values:
        values["lr"] = default_lr([s.method for s in strata], optimizer)
    if values.get("group_dro"):  # its algorithm draws the cells that it weighs equally often
        sampling = values.get("sampling", Train.sampling)
        values["sampling"] = _WITH_GROUPS.get(sampling, sampling)
    if readout.block == 1:  # the first block is never dropped
        values.pop("drop_path", None)
    return Train(**values)


def default_lr(methods: list[str], optimizer: str) -> float:
    """The learning-rate prior of a candidate: the smallest of its methods' priors.

    Raises:
        UserError: none of them has one for this optimizer.
    """
    rates = [method_named(m).rates for m in methods]
    priors = [r[optimizer].prior for r in rates if optimizer in r]
    if not priors:
        what = f"{', '.join(methods)} has no learning rate for {optimizer}"
        raise UserError(what, "train", "Give lr, or choose another optimizer.")
    return min(priors)


def _probe(values: Mapping[str, Any]) -> Train:
    """What a linear probe reads: penalty, sampling, class weights. It is solved, not stepped."""
    loss = values.get("loss", Train.loss)
    return Train(
        optimizer="lbfgs",
        weight_decay=values.get("weight_decay", Train.weight_decay),
        loss=loss if loss in _PROBE_LOSSES else Train.loss,
        sampling=values.get("sampling", Train.sampling),
    )


def _number(key: str, value: Any) -> float:
    low, high, closed = _RANGES[key]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
        number = rounded(value)
        if low < number <= high or (closed and number == low):
            return number
    start = "from 0" if closed else "above 0"
    raise UserError(f"{key} = {value!r} is not possible", "train", f"Range: {start} to {high:g}.")


def _yes_or_no(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{key} = {value!r} is not possible", "train", "Write true or false.")
    return value


def _word(key: str, value: Any, hint: Any) -> str:
    words: tuple[str, ...] = get_args(hint)
    if value not in words:
        raise UserError(f"{key} = {value!r} is not possible", "train", nearest(str(value), words))
    return str(value)
