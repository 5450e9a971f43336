"""The objective: what is optimized, what must be kept, and how one winner is chosen.

An objective is data: terms, constraints, a choose rule. It is computed in the driver from stored
predictions, so another objective can be applied to a finished run without training anything.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from autopeft import plugins
from autopeft.errors import UserError
from autopeft.evaluation import Evaluation
from autopeft.metrics import METRICS, Direction
from autopeft.metrics.front import Front, Values, select_front
from autopeft.metrics.intervals import COMPARABLE
from autopeft.rules import Rule, dto, knee, lexicographic, overall, worst_group
from autopeft.terms import Measure, Term, check_metric, measure, name_of

__all__ = (
    "UNDEFINED",
    "AtLeast",
    "AtMost",
    "Bound",
    "Objective",
    "Rule",
    "Term",
    "dto",
    "knee",
    "lexicographic",
    "list_objectives",
    "load_objective",
    "measure",
    "overall",
    "parse_bound",
    "worst_group",
)

# The violation of a constraint that cannot be computed: finite, because Optuna reads a missing or
# NaN constraint as feasible (TRAPS B2, B5), and JSON holds no infinity.
UNDEFINED = 1e12


_WORDS = ("reference", "margin")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ATOM = rf"(?:{_NUMBER}|reference|margin)"
_SUM = re.compile(rf"\s*-?\s*{_ATOM}(?:\s*[+-]\s*{_ATOM})*\s*")
_PART = re.compile(rf"([+-]?)\s*({_ATOM})")


@dataclass(frozen=True)
class Bound:
    """A constraint on one metric; use `AtLeast` or `AtMost`.

    Attributes:
        metric: as in `Term`.
        bound: a number, or a sum such as ``"reference - 0.01"`` or ``"reference - margin"``:
            ``reference`` is the strongest baseline's value of the same metric, measured on
            ``search`` and frozen before trial 1; ``margin`` is the settings' ``--margin``.
    """

    metric: Measure
    bound: float | str
    parts: tuple[tuple[int, float | str], ...] = field(init=False, repr=False, compare=False)
    sign = 0
    word = ""

    def __post_init__(self) -> None:
        check_metric(self.metric)
        object.__setattr__(self, "parts", parse_bound(self.bound))

    @property
    def name(self) -> str:
        """``auroc at least reference - margin``: the constraint's name in the study."""
        return f"{name_of(self.metric)} {self.word} {self.bound}"

    @property
    def uses_reference(self) -> bool:
        """Whether a baseline has to be measured first."""
        return any(part == "reference" for _, part in self.parts)

    def limit(self, evaluation: Evaluation) -> float:
        """The bound as a number.

        Raises:
            ValueError: the reference of this metric has not been measured.
        """
        known = {"margin": evaluation.margin}
        if self.uses_reference:
            if name_of(self.metric) not in evaluation.reference:
                raise ValueError(f"no reference value of {name_of(self.metric)} was measured")
            known["reference"] = evaluation.reference[name_of(self.metric)]
        return sum(s * (known[p] if isinstance(p, str) else p) for s, p in self.parts)

    def violation(self, evaluation: Evaluation) -> float:
        """How far the metric lies on the wrong side; <= 0 is feasible."""
        limit = self.limit(evaluation)
        value = measure(self.metric, evaluation)
        return UNDEFINED if value is None else self.sign * (value - limit)


class AtLeast(Bound):
    """The metric must not lie below the bound."""

    sign = -1
    word = "at least"


class AtMost(Bound):
    """The metric must not lie above the bound."""

    sign = 1
    word = "at most"


@dataclass(frozen=True)
class Objective:
    """What is optimized, under which constraints, and how one winner is chosen.

    Attributes:
        terms: one or more quantities; several make a Pareto front.
        constraints: what a candidate must keep to be on the front.
        choose: front (list of evaluations) -> index of the winner.
        rung: the named metric by which trials are promoted: higher is better, also half-trained.
        primary: the named metric of the verdict's contrast and of the ranking on ``confirm``:
            higher is better, and paired intervals of it are known.
        needs: what the evaluations must hold; what the named metrics need is added.
        shown: named metrics that are reported but never optimized.
        description: plain words; taken from the file's docstring when empty.
        name: file name, set by `load_objective`.
    """

    terms: tuple[Term, ...]
    constraints: tuple[Bound, ...] = ()
    choose: Callable[[Sequence[Evaluation]], int] = overall
    rung: str = "auroc"
    primary: str = "auroc"
    needs: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    description: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.terms:
            raise UserError("an objective needs at least one term", "objective")
        named = [t.metric for t in self.terms] + [c.metric for c in self.constraints]
        for metric in (self.rung, self.primary, *self.shown):
            check_metric(metric)
        if not METRICS[self.rung].every_fidelity or METRICS[self.rung].direction == "minimize":
            raise UserError(
                f"{self.rung} cannot promote trials: it does not say which half-trained model is "
                "the better one",
                "objective, rung",
                "Use auroc.",
            )
        if self.primary not in COMPARABLE:
            raise UserError(
                f"{self.primary} cannot carry the verdict",
                "objective, primary",
                f"Use one of: {', '.join(COMPARABLE)}.",
            )
        optimized = [t.name for t in self.terms if t.name in METRICS]
        loose = [name for name in optimized if not METRICS[name].every_fidelity]
        if loose and not any(isinstance(c, AtLeast) for c in self.constraints):
            raise UserError(
                f"{loose[0]} is optimized without a floor: a constant score would win",
                "objective, constraints",
                'Add AtLeast("auroc", "reference - margin").',
            )
        rule = [k.metric for k in self.choose.keys] if isinstance(self.choose, Rule) else []
        used = [m for m in (*named, *rule, self.rung, self.primary) if isinstance(m, str)]
        derived = {need for metric in used for need in METRICS[metric].needs}
        object.__setattr__(self, "needs", tuple(sorted(derived.union(self.needs))))

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of the terms, as Optuna wants them."""
        return tuple(t.direction for t in self.terms if t.direction is not None)

    @property
    def promoting(self) -> tuple[tuple[int, int], ...]:
        """Terms that rank a half-trained model fairly: (index, +1 to maximize or -1).

        With fewer than two of them trials are promoted by the rung metric alone. A term that is a
        function of the user's own never promotes: nothing is known of it at low fidelity.
        """
        return tuple(
            (i, 1 if term.direction == "maximize" else -1)
            for i, term in enumerate(self.terms)
            if isinstance(term.metric, str) and METRICS[term.metric].every_fidelity
        )

    @property
    def references(self) -> tuple[str, ...]:
        """Metrics whose baseline value must be frozen before trial 1."""
        found = [name_of(c.metric) for c in self.constraints if c.uses_reference]
        return tuple(dict.fromkeys(found))

    def values(self, evaluation: Evaluation) -> Values:
        """Value of each term, None where undefined."""
        return tuple(measure(t.metric, evaluation) for t in self.terms)

    def violations(self, evaluation: Evaluation) -> dict[str, float]:
        """Constraint's name -> violation; <= 0 is feasible, `UNDEFINED` where not computable."""
        return {c.name: c.violation(evaluation) for c in self.constraints}

    def metrics(self, evaluation: Evaluation) -> dict[str, float | None]:
        """Everything that a report shows: terms, constraints, primary, rung and shown metrics."""
        every: list[Measure] = [t.metric for t in self.terms]
        every += [c.metric for c in self.constraints]
        every += [self.primary, self.rung, *self.shown]
        return {name_of(m): measure(m, evaluation) for m in dict.fromkeys(every)}

    def front(self, evaluations: Sequence[Evaluation]) -> Front:
        """Feasible, non-dominated evaluations; undefined values never enter.

        Returns:
            When nothing is feasible, the evaluation (or equal ones) that violates least, with
            ``feasible=False``. Empty only when no evaluation has all its values.
        """
        values = [self.values(e) for e in evaluations]
        excess = [self._excess(e) for e in evaluations]
        return select_front(values, excess, self.directions)

    def _excess(self, evaluation: Evaluation) -> float:
        """Sum of the violations, each relative to its bound, so that units do not mix."""
        total = 0.0
        for constraint in self.constraints:
            scale = abs(constraint.limit(evaluation)) or 1.0
            total += max(0.0, constraint.violation(evaluation)) / scale
        return total


def parse_bound(bound: float | str) -> tuple[tuple[int, float | str], ...]:
    """Reads a bound: numbers, ``reference`` and ``margin`` joined by ``+`` and ``-``.

    Returns:
        (sign, number or name) of each part, in order.

    Raises:
        UserError: anything else.
    """
    if isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound):
        return ((1, float(bound)),)
    if isinstance(bound, str) and _SUM.fullmatch(bound):
        found = _PART.findall(bound)
        return tuple(
            (-1 if sign == "-" else 1, word if word in _WORDS else float(word))
            for sign, word in found
        )
    raise UserError(
        f"bound {bound!r} cannot be read",
        "objective, constraints",
        'Write a number, "reference", "reference - 0.01" or "reference - margin".',
    )


def list_objectives() -> tuple[str, ...]:
    """Names of the built-in objectives."""
    return plugins.names("objectives")


def load_objective(name_or_path: str) -> Objective:
    """Loads a built-in objective by name or a user's file by path (``./mine.py``).

    The file is executed only here, when it was asked for by name.

    Raises:
        UserError: no such objective, or the file is broken (one line, with file and line).
    """
    plugin = plugins.find("objectives", name_or_path)
    module = plugins.execute(plugin)
    found = getattr(module, "OBJECTIVE", None)
    if not isinstance(found, Objective):
        raise UserError(
            "has no constant OBJECTIVE that is an Objective",
            str(plugin.path),
            "See `autopeft copy objective auroc mine.py` for a start.",
        )
    text = found.description or inspect.cleandoc(module.__doc__ or "")
    return replace(found, name=plugin.name, description=text)
