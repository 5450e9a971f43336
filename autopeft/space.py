"""The search space: a YAML file that says which candidates exist.

Layout of a file (every section but ``methods`` may be left out)::

    methods:                      # one is chosen for each candidate
      lora:                       # a method's name; below it
        r: {choices: [4, 8, 16]}                  # its options,
        last: {choices: [2, half, all]}           # how many of the last blocks below the readout,
        modules: {choices: [qkv, qkv+proj, all]}  # which modules inside a block,
        lr: {type: float, low: 2e-4, high: 2e-2, log: true}   # and its own training fields
    readout: {block: ..., pool: ...}              # where the head reads
    train: {sampling: ..., weight_decay: 0.01}    # training fields shared by all methods
    defaults:                     # tried first, by parameter name; what is left out is sampled
      - {when: few, method: lora, lora.r: 4}      # few, some or many training images: those that
      - {method: lora, lora.r: 8}                 # fit the task come first, those that do not last
    methods_from: [./gate.py]     # Python files with methods of your own, beside this file

Depths may be said as a share (``half``, ``all`` ...), so that one file fits backbones of any
depth. Choices that a backbone or a task cannot have (a module it lacks, group sampling without
groups) are left out of its search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from autopeft import plugins
from autopeft.candidate import Candidate, Readout, Train
from autopeft.errors import UserError, nearest
from autopeft.plugins import Plugin
from autopeft.ranges import Field, read_field, read_yaml

SHARES = {
    "quarter": 1 / 4,
    "third": 1 / 3,
    "half": 1 / 2,
    "two_thirds": 2 / 3,
    "three_quarters": 3 / 4,
    "all": 1.0,
}
# Below how many training images a task counts as such. MED-PEFT ("Less could be better", MIDL
# 2024) found one rank for each: its NIH lists of 1, 10 and 100 % hold 785, 7,847, 78,468 images.
WHEN = {"few": 1_000, "some": 20_000, "many": None}
_SECTIONS = ("methods", "readout", "train", "defaults", "methods_from")
_PLACE = ("last", "modules")
_TRAIN = {name: get_args(hint) for name, hint in get_type_hints(Train).items()}
_READOUT = {name: get_args(hint) for name, hint in get_type_hints(Readout).items()}
_GROUP_SAMPLING = ("group", "label_x_group")


class Shape(Protocol):
    """The facts of a backbone that a space needs."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    @property
    def modules(self) -> Mapping[str, Any]:
        """Module names inside a block."""

    @property
    def pools(self) -> Sequence[str]:
        """How features can be pooled."""


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
    """

    name: str
    where: str
    sha256: str
    methods: Mapping[str, tuple[Field, ...]]
    readout: tuple[Field, ...]
    train: tuple[Field, ...]
    points: tuple[Mapping[str, Any], ...]
    plugins: tuple[Plugin, ...] = ()

    @property
    def method(self) -> Field:
        """The choice of the method."""
        return Field("method", self.where, CategoricalDistribution(tuple(self.methods)))

    @property
    def fields(self) -> dict[str, Field]:
        """Every field by the one name that it has in the study."""
        every = [self.method, *self.readout, *self.train]
        every += [field for section in self.methods.values() for field in section]
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

        def fitted(field: Field) -> Field:
            return _fit(field, facts, has_groups)

        methods = {name: tuple(map(fitted, section)) for name, section in self.methods.items()}
        readout, train = tuple(map(fitted, self.readout)), tuple(map(fitted, self.train))
        return replace(self, methods=methods, readout=readout, train=train)

    def ask(
        self, trial: optuna.trial.BaseTrial, facts: Shape, has_groups: bool = False
    ) -> dict[str, Any]:
        """Draws one candidate, as ``autopeft.methods.canonical`` takes it.

        Args:
            trial: an Optuna trial, or a ``FixedTrial``.
            facts: the backbone.
            has_groups: whether the task has groups to sample by.
        """
        space = self.fit(facts, has_groups)
        method = space.method.draw(trial)
        readout = {field.key: field.draw(trial) for field in space.readout}
        block = _blocks(readout.get("block", "all"), facts.depth)
        if "block" in readout:
            readout["block"] = block
        train = {field.key: field.draw(trial) for field in space.train}
        stratum: dict[str, Any] = {"method": method, "options": {}}
        for field in space.methods[method]:
            value = field.draw(trial)
            if field.key == "last":
                # Counted from the readout: blocks above it are never run.
                stratum["blocks"] = [block - _blocks(value, block), block - 1]
            elif field.key == "modules":
                stratum["modules"] = value
            elif field.key in _TRAIN:
                train[field.key] = value
            else:
                stratum["options"][field.key] = value
        return {"strata": [stratum], "train": train, "readout": readout}

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
        for name, section in self.methods.items():
            where = f"{self.where}, methods"
            if name not in methods:
                raise UserError(f"unknown method {name!r}", where, nearest(name, methods))
            options = {f.name for f in fields(methods[name])}
            known = options | set(_PLACE) | set(_TRAIN)
            for field in section:
                if field.key not in known:
                    what = f"{name} has no option {field.key!r}"
                    raise UserError(what, field.where, nearest(field.key, known))
        self.defaults(facts, has_groups)
        if canonical is not None:
            self.fit(facts, has_groups)._try_all(facts, has_groups, canonical)

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
            where = f"{self.where}, defaults[{index}]"
            if "method" not in point:
                raise UserError("no method is named", where, nearest("", self.methods))
            rank = _order(point.get("when"), images, where)
            values = {name: value for name, value in point.items() if name != "when"}
            for name, value in values.items():
                self._check_point(name, value, str(point["method"]), where)
            # What is fixed is no parameter, and what is impossible here is left to the sampler.
            searched = {n: v for n, v in values.items() if fitted[n].distribution is not None}
            points.append((rank, {n: v for n, v in searched.items() if fitted[n].contains(v)}))
        return [point for _, point in sorted(points, key=lambda p: p[0])]

    def _check_point(self, name: str, value: Any, method: str, where: str) -> None:
        scope = name.partition(".")[0]
        if name not in self.fields:
            raise UserError(f"unknown parameter {name!r}", where, nearest(name, self.fields))
        if scope in self.methods and scope != method:
            what = f"{name!r} belongs to {scope}, but the method is {method}"
            raise UserError(what, where, "Leave it out.")
        if not self.fields[name].contains(value):
            listed = ", ".join(map(str, self.fields[name].extremes))
            raise UserError(
                f"{name} = {value!r} is outside of the space", where, f"It has: {listed}."
            )

    def _try_all(
        self,
        facts: Shape,
        has_groups: bool,
        canonical: Callable[[Mapping[str, Any], Any], Candidate],
    ) -> None:
        """One candidate for each choice and each end of a range, the others at their first."""
        for method, section in self.methods.items():
            relevant = [*self.readout, *self.train, *section]
            first = {f.name: f.extremes[0] for f in relevant if f.distribution is not None}
            for field in relevant:
                for value in field.extremes:
                    point = {**first, "method": method}
                    if field.distribution is not None:
                        point[field.name] = value
                    raw = self.ask(optuna.trial.FixedTrial(point), facts, has_groups)
                    try:
                        canonical(raw, facts)
                    except UserError as error:
                        raise UserError(error.what, field.where, error.fix) from None


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
    methods = _mapping(raw.get("methods"), f"{where}, methods")
    if not methods:
        raise UserError("no method is named", f"{where}, methods", "Name at least one.")
    points = raw.get("defaults") or []
    if not isinstance(points, list) or not all(isinstance(p, Mapping) for p in points):
        raise UserError("defaults is no list of mappings", where, "- {method: lora, lora.r: 8}")
    return Space(
        name,
        where,
        sha256,
        {str(m): _section(str(m), s, f"{where}, methods.{m}", None) for m, s in methods.items()},
        _section("readout", raw.get("readout"), f"{where}, readout", _READOUT),
        _section("train", raw.get("train"), f"{where}, train", _TRAIN),
        tuple({str(k): v for k, v in point.items()} for point in points),
        _files(raw.get("methods_from"), where),
    )


def _files(spec: Any, where: str) -> tuple[Plugin, ...]:
    """The Python files that a space names, beside its own file."""
    if spec is None:
        return ()
    every = [spec] if isinstance(spec, str) else spec
    if not isinstance(every, list) or not all(isinstance(path, str) for path in every):
        raise UserError(
            f"{spec!r} is no list of files", f"{where}, methods_from", "Write [./gate.py]."
        )
    try:
        return tuple(plugins.read_python(Path(where).parent / Path(p).expanduser()) for p in every)
    except UserError as error:
        what = f"{error.where}: {error.what}"
        raise UserError(what, f"{where}, methods_from", error.fix) from None


def _order(when: Any, images: int, where: str) -> int:
    """Place of a warm start: 0 fits the number of training images, 1 any number, 2 another."""
    if when is None:
        return 1 if images else 0
    if not isinstance(when, str) or when not in WHEN:
        raise UserError(f"when = {when!r} is not possible", where, nearest(str(when), WHEN))
    fitting = next(word for word, limit in WHEN.items() if limit is None or images < limit)
    return 2 * (when != fitting) if images else 0


def _section(
    scope: str, spec: Any, where: str, known: Mapping[str, tuple[Any, ...]] | None
) -> tuple[Field, ...]:
    """The fields of one section; ``known`` names the possible ones and their words."""
    section = []
    for key, value in _mapping(spec, where).items():
        if known is not None and key not in known:
            raise UserError(f"unknown field {key!r}", where, nearest(str(key), known))
        field = read_field(f"{scope}.{key}", value, f"{where}.{key}")
        words = _TRAIN.get(str(key), ()) if scope != "readout" else _READOUT[str(key)]
        for word in field.extremes if words else ():
            if word not in words:
                raise UserError(
                    f"{word!r} is not possible", field.where, nearest(str(word), words)
                )
        if key == "last" or (scope, key) == ("readout", "block"):
            _check_depth(field)
        section.append(field)
    return tuple(section)


def _check_depth(field: Field) -> None:
    for value in field.extremes:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and value not in SHARES:
            fix = f"Write a number of blocks or one of {', '.join(SHARES)}."
            raise UserError(f"{value!r} is no depth", field.where, fix)


def _mapping(spec: Any, where: str) -> Mapping[str, Any]:
    if spec is None:
        return {}
    if not isinstance(spec, Mapping):
        raise UserError(f"{spec!r} is no section", where, "Write `field: value` lines.")
    return spec


def _blocks(value: Any, depth: int) -> int:
    """A depth as written (a number or a share) as a number of blocks, 1 to ``depth``."""
    blocks = round(SHARES[value] * depth) if isinstance(value, str) else int(value)
    return min(depth, max(1, blocks))


def _fit(field: Field, facts: Shape, has_groups: bool) -> Field:
    """A field without the choices that the backbone or the task cannot have."""
    if field.key == "modules":

        def present(value: Any) -> bool:
            return value == "all" or set(str(value).split("+")) <= set(facts.modules)

        return field.keep(present, f"This backbone has: {', '.join(facts.modules)}, or all.")
    if field.name == "readout.pool":
        return field.keep(lambda v: v in facts.pools, f"This backbone has: {facts.pools}.")
    if field.name == "readout.block":

        def exists(value: Any) -> bool:
            return isinstance(value, str) or value <= facts.depth

        why = f"This backbone has {facts.depth} blocks."
        if field.is_range:
            if not all(map(exists, field.extremes)):
                raise UserError("the range leaves the backbone", field.where, why)
            return field
        return field.keep(exists, why)
    if field.key == "sampling" and not has_groups:
        return field.keep(
            lambda v: v not in _GROUP_SAMPLING, "Group sampling needs groups: give --group."
        )
    return field
