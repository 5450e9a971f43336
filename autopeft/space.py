"""The search space: a YAML file that says which candidates exist.

Layout of a file (``methods`` or ``strata`` must be there, the rest may be left out)::

    methods:                      # one is chosen for each candidate
      lora:                       # a method's name; below it
        r: {choices: [4, 8, 16]}                  # its options,
        last: {choices: [2, half, all]}           # how many of the last blocks below the readout,
        modules: {choices: [qkv, qkv+proj, all]}  # which modules inside a block,
        lr: {type: float, low: 2e-4, high: 2e-2, log: true}   # and its own training fields
    strata:                       # or: parts that one candidate has side by side
      prompts: {method: vpt_deep, use: {choices: [true, false]}, p: {choices: [5, 10]}}
      high: {method: lora, first: {choices: [quarter, half]}, r: 8}
    mask: each                    # which blocks the parts without a placement have
    readout: {block: ..., pool: ...}              # where the head reads
    train: {sampling: ..., weight_decay: 0.01}    # training fields shared by all methods
    post: {wise_ft: {alpha: {choices: [0.5, 1.0]}}}   # a step after training, where possible
    defaults:                     # tried first, by parameter name; what is left out is sampled
      - {when: few, method: lora, lora.r: 4}      # few, some or many training images: those that
      - {method: lora, lora.r: 8}                 # fit the task come first, those that do not last
    methods_from: [./gate.py]     # Python files with methods of your own, beside this file

A placement is ``last``, or ``first`` (the first block, counted from 0) and ``until`` (the first
one that is not meant), or ``mask: each``: one yes or no a block, named ``lora.mask.0`` and so on.
``each`` also stands for an option that holds one bit a block. Depths may be said as a share
(``half``, ``all`` ...), so that one file fits backbones of any depth; for an option that is a
number of blocks write ``{blocks: [quarter, half]}``. Choices that a backbone or a task cannot
have (a module it lacks, group sampling without groups) are left out of its search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from autopeft import plugins
from autopeft.candidate import Candidate
from autopeft.errors import UserError, nearest
from autopeft.plugins import Plugin
from autopeft.ranges import Field, read_yaml
from autopeft.sections import (
    PLACE,
    READOUT,
    SHARES,
    TRAIN,
    Part,
    Shape,
    blocks_of,
    draw,
    draw_stratum,
    fit_section,
    mapping,
    read_files,
    read_part,
    read_section,
)

# Below how many training images a task counts as such. MED-PEFT ("Less could be better", MIDL
# 2024) found one rank for each: its NIH lists of 1, 10 and 100 % hold 785, 7,847, 78,468 images.
WHEN = {"few": 1_000, "some": 20_000, "many": None}
_SECTIONS = ("methods", "strata", "mask", "readout", "train", "post", "defaults", "methods_from")


@dataclass(frozen=True)
class Space:
    """All candidates that a YAML file allows.

    Attributes:
        name: file name without its ending.
        where: the file, for errors.
        sha256: of the file's bytes.
        methods: method -> its fields (options, ``last``, ``modules``, training fields).
        readout: fields of the readout.
        train: training fields shared by all methods.
        points: warm starts, as parameters by name; ``when`` says for how many training images.
        plugins: files of methods of the user's own, read and not executed.
        parts: name -> part, in the place of ``methods``.
        mask: one yes or no a block, for the parts without a placement.
        post: fields of the step after training (WiSE-FT), left out where a method cannot take it.
    """

    name: str
    where: str
    sha256: str
    methods: Mapping[str, tuple[Field, ...]]
    readout: tuple[Field, ...]
    train: tuple[Field, ...]
    points: tuple[Mapping[str, Any], ...]
    plugins: tuple[Plugin, ...] = ()
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    mask: tuple[Field, ...] = ()
    post: tuple[Field, ...] = ()

    @property
    def single(self) -> bool:
        """Whether all candidates have the same parameters, as a Gaussian process needs it."""
        return len(self.methods) <= 1 and not any(p.optional for p in self.parts.values())

    @property
    def sections(self) -> Iterator[tuple[str, str, tuple[Field, ...]]]:
        """Scope, method and fields of every method or part."""
        for name, section in self.methods.items():
            yield name, name, section
        for name, part in self.parts.items():
            yield name, part.method, part.fields

    @property
    def method(self) -> Field:
        """The choice of the method."""
        return Field("method", self.where, CategoricalDistribution(tuple(self.methods)))

    @property
    def fields(self) -> dict[str, Field]:
        """Every field by the one name that it has in the study."""
        every = [self.method] if self.methods else []
        every += [*self.mask, *self.readout, *self.train, *self.post]
        every += [field for _, _, section in self.sections for field in section]
        names = [field.name for field in every]
        assert len(set(names)) == len(names), f"a name stands for two fields: {sorted(names)}"
        return {field.name: field for field in every}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter that is searched, and its range: one for each name."""
        return {n: f.distribution for n, f in self.fields.items() if f.distribution is not None}

    def fit(self, facts: Shape, has_groups: bool) -> Space:
        """The space without the choices that this backbone and this task cannot have.

        Raises:
            UserError: a field has nothing left, or a depth that the backbone lacks.
        """

        def fitted(section: tuple[Field, ...]) -> tuple[Field, ...]:
            return fit_section(section, facts, has_groups)

        return replace(
            self,
            methods={name: fitted(section) for name, section in self.methods.items()},
            parts={n: replace(p, fields=fitted(p.fields)) for n, p in self.parts.items()},
            mask=fitted(self.mask),
            readout=fitted(self.readout),
            train=fitted(self.train),
        )

    def ask(
        self, trial: optuna.trial.BaseTrial, facts: Shape, has_groups: bool = False
    ) -> dict[str, Any]:
        """Draws one candidate, as ``autopeft.methods.canonical`` takes it.

        Args:
            trial: an Optuna trial, or a ``FixedTrial``.
            facts: the backbone.
            has_groups: whether the task has groups to sample by.
        """
        return self.fit(facts, has_groups).draw(trial, facts)

    def draw(self, trial: optuna.trial.BaseTrial, facts: Shape) -> dict[str, Any]:
        """As ``ask``, of a space that is fitted already."""
        sections = list(self.sections)
        if self.methods:
            method = self.method.draw(trial)
            sections = [(method, method, self.methods[method])]
        readout = {field.key: field.draw(trial) for field in self.readout}
        block = blocks_of(readout.get("block", "all"), facts.depth)
        if "block" in readout:
            readout["block"] = block
        train = {field.key: field.draw(trial) for field in self.train}
        mask = [draw(bit, trial, block) for bit in self.mask] or None
        strata = []
        for _, method, section in sections:
            stratum, own = draw_stratum(method, section, trial, block, facts, mask)
            train |= own
            strata += [stratum] if stratum is not None else []
        found: dict[str, Any] = {"strata": strata, "train": train, "readout": readout}
        if self.post:
            drawn = {field.key: field.draw(trial) for field in self.post}
            found["post"] = {"method": "wise_ft", "where_possible": True, **drawn}
        return found

    def check(
        self,
        facts: Shape,
        methods: Mapping[str, type],
        has_groups: bool = False,
        canonical: Callable[[Mapping[str, Any], Any], Candidate] | None = None,
    ) -> None:
        """Validates everything that can be asked, before anything is trained.

        Args:
            facts: the backbone.
            methods: ``autopeft.methods.METHODS``; a method's fields are its options.
            has_groups: whether the task has groups to sample by.
            canonical: ``autopeft.methods.canonical``: every choice and both ends of every range
                are tried with it.

        Raises:
            UserError: an unknown method or option (nearest name offered), a value that the method
                refuses, a warm start outside of the space.
        """
        self.check_names(methods)
        self.defaults(facts, has_groups)
        if canonical is not None:
            self.fit(facts, has_groups)._try_all(facts, has_groups, canonical)

    def check_names(self, methods: Mapping[str, type]) -> None:
        """Validates names and warm starts, whatever the backbone.

        Raises:
            UserError: an unknown method, option or parameter; a warm start outside of the space.
        """
        for scope, method, section in self.sections:
            where = f"{self.where}, {'methods' if self.methods else f'strata.{scope}'}"
            if method not in methods:
                raise UserError(f"unknown method {method!r}", where, nearest(method, methods))
            options = {f.name for f in fields(methods[method])}
            masks = {f.name for f in fields(methods[method]) if f.metadata.get("mask")}
            known = options | set(PLACE) | (set(TRAIN) if self.methods else {"use"})
            for field in section:
                if field.key not in known:
                    what = f"{method} has no option {field.key!r}"
                    raise UserError(what, field.where, nearest(field.key, known))
                numbers = [v for v in field.extremes if not isinstance(v, str)]
                if field.key in masks and numbers and not field.is_range:
                    what = f"{numbers[0]} is read as a number, but {field.key} is a mask"
                    raise UserError(what, field.where, "Quote it, block 0 first: '000111'.")
        for index, point in enumerate(self.points):
            where = f"{self.where}, defaults[{index}]"
            if self.methods and "method" not in point:
                raise UserError("no method is named", where, nearest("", self.methods))
            _order(point.get("when"), 0, where)
            for name, value in point.items():
                if name != "when":
                    self._check_point(name, value, str(point.get("method", "")), where)

    def defaults(
        self, facts: Shape, has_groups: bool = False, images: int = 0
    ) -> list[dict[str, Any]]:
        """The warm starts, without values that this backbone or this task cannot have.

        Args:
            facts: the backbone.
            has_groups: whether the task has groups to sample by.
            images: training images. Warm starts for so many come first, then those for any
                number, then the others; 0 leaves them in the file's order.

        Raises:
            UserError: a warm start names a parameter or a value that the space does not have.
        """
        fitted, points = self.fit(facts, has_groups).fields, []
        for index, point in enumerate(self.points):
            rank = _order(point.get("when"), images, f"{self.where}, defaults[{index}]")
            values = {n: v for n, v in self._spread(point, facts).items() if n in fitted}
            # What is fixed is no parameter, and what is impossible here is left to the sampler.
            searched = {n: v for n, v in values.items() if fitted[n].distribution is not None}
            points.append((rank, {n: v for n, v in searched.items() if fitted[n].contains(v)}))
        return [point for _, point in sorted(points, key=lambda p: p[0])]

    def _spread(self, point: Mapping[str, Any], facts: Shape) -> dict[str, Any]:
        """A warm start with one value a block where it gives a word for all of them."""
        own, values = self.fields, dict[str, Any]()
        for name, value in point.items():
            if name in own and own[name].each:
                on = 0 if value == "none" else blocks_of(value, facts.depth)
                for i in range(facts.depth):
                    values[f"{name}.{i}"] = i >= facts.depth - on
            else:
                values[name] = value
        return values

    def _check_point(self, name: str, value: Any, method: str, where: str) -> None:
        scope, own = name.partition(".")[0], self.fields
        stem, _, block = name.rpartition(".")
        if stem in own and own[stem].each and block.isdigit():  # one bit of one block
            known, possible = own[stem], isinstance(value, bool)
        elif name in own:
            known = own[name]
            possible = value in ("none", *SHARES) if known.each else known.contains(value)
        else:
            raise UserError(f"unknown parameter {name!r}", where, nearest(name, own))
        if scope in self.methods and scope != method:
            what = f"{name!r} belongs to {scope}, but the method is {method}"
            raise UserError(what, where, "Leave it out.")
        if not possible:
            words = ("none", *SHARES) if known.each else known.extremes
            raise UserError(
                f"{name} = {value!r} is outside of the space",
                where,
                f"It has: {', '.join(map(str, words))}.",
            )

    def _try_all(
        self,
        facts: Shape,
        has_groups: bool,
        canonical: Callable[[Mapping[str, Any], Any], Candidate],
    ) -> None:
        """One candidate for each choice and each end of a range, the others at their first."""
        shared = [*self.readout, *self.train, *self.mask, *self.post]
        for sections in self._candidates():
            relevant = [*shared, *(f for _, _, section in sections for f in section)]
            first = {f.name: f.typical for f in relevant if f.distribution is not None}
            if self.methods:
                first["method"] = sections[0][0]
            for field in relevant:
                for value in field.extremes:
                    point = dict(first)
                    if field.distribution is not None:
                        point[field.name] = value
                    raw = self.ask(optuna.trial.FixedTrial(point), facts, has_groups)
                    try:
                        canonical(raw, facts)
                    except UserError as error:
                        raise UserError(error.what, field.where, error.fix) from None

    def _candidates(self) -> Iterator[list[tuple[str, str, tuple[Field, ...]]]]:
        """The sections that go together: each method by itself, all parts at once."""
        every = list(self.sections)
        yield from ([one] for one in every) if self.methods else [every]


def load_space(name_or_path: str) -> Space:
    """A search space by name or path.

    Raises:
        UserError: no such space, or a mistake in the file: it names the field.
    """
    plugin = plugins.find("search_spaces", name_or_path)
    return read_space(plugin.text, str(plugin.path), plugin.name, plugin.sha256)


def read_space(text: str, where: str, name: str = "", sha256: str = "") -> Space:
    """A search space from the text of a YAML file.

    Raises:
        UserError: a mistake in the text: it names the field.
    """
    raw = read_yaml(text, where)
    for key in raw:
        if key not in _SECTIONS:
            raise UserError(f"unknown section {key!r}", where, nearest(str(key), _SECTIONS))
    methods = mapping(raw.get("methods"), f"{where}, methods")
    parts = mapping(raw.get("strata"), f"{where}, strata")
    if methods and parts:
        raise UserError("it has methods and strata", where, "Keep one of these sections.")
    if not methods and not parts:
        raise UserError("no method is named", f"{where}, methods", "Name at least one.")
    for name in parts:
        if name in _SECTIONS or not str(name).isidentifier():
            raise UserError(f"{name!r} is no name for a part", f"{where}, strata", "Rename it.")
    points = raw.get("defaults") or []
    if not isinstance(points, list) or not all(isinstance(p, Mapping) for p in points):
        raise UserError("defaults is no list of mappings", where, "- {method: lora, lora.r: 8}")
    return Space(
        name,
        where,
        sha256,
        {
            str(m): read_section(str(m), s, f"{where}, methods.{m}", None)
            for m, s in methods.items()
        },
        read_section("readout", raw.get("readout"), f"{where}, readout", READOUT),
        read_section("train", raw.get("train"), f"{where}, train", TRAIN),
        tuple({str(k): v for k, v in point.items()} for point in points),
        read_files(raw.get("methods_from"), where),
        {str(p): read_part(str(p), s, f"{where}, strata.{p}") for p, s in parts.items()},
        _mask(raw, where),
        _post(raw.get("post"), f"{where}, post"),
    )


def _post(spec: Any, where: str) -> tuple[Field, ...]:
    steps = mapping(spec, where)
    for step in steps:
        if step != "wise_ft":
            raise UserError(f"unknown step {step!r}", where, nearest(str(step), ("wise_ft",)))
    return read_section("wise_ft", steps.get("wise_ft"), f"{where}.wise_ft", {"alpha": ()})


def _mask(raw: Mapping[str, Any], where: str) -> tuple[Field, ...]:
    if "mask" not in raw:
        return ()
    if raw["mask"] != "each" or not raw.get("strata"):
        fix = "Write mask: each beside strata; a method has its mask in its own section."
        raise UserError(f"mask = {raw['mask']!r} is not possible here", where, fix)
    return (Field("mask", f"{where}, mask", value="each"),)


def _order(when: Any, images: int, where: str) -> int:
    """Place of a warm start: 0 fits the number of training images, 1 any number, 2 another."""
    if when is None:
        return 1 if images else 0
    if not isinstance(when, str) or when not in WHEN:
        raise UserError(f"when = {when!r} is not possible", where, nearest(str(when), WHEN))
    fitting = next(word for word, limit in WHEN.items() if limit is None or images < limit)
    return 2 * (when != fitting) if images else 0
