"""What is optimized or compared: a metric by name or function, and which way is better."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from autopeft import plugins
from autopeft.errors import UserError, nearest
from autopeft.evaluation import Evaluation
from autopeft.metrics import METRICS, Direction

Measure = str | Callable[[Evaluation], float | None]


def name_of(metric: Measure) -> str:
    """The name of a metric, or of a function."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", repr(metric))


def check_metric(metric: Measure) -> None:
    """Refuses what is no metric.

    Raises:
        UserError: neither a known name nor a function.
    """
    if isinstance(metric, str) and metric not in METRICS:
        raise UserError(f"there is no metric {metric!r}", "objective", nearest(metric, METRICS))
    if not isinstance(metric, str) and not callable(metric):
        raise UserError(
            f"metric {metric!r} is neither a name nor a function",
            "objective",
            nearest("", METRICS),
        )


@dataclass(frozen=True)
class Term:
    """One quantity to optimize.

    Attributes:
        metric: a name in ``autopeft.metrics.METRICS``, or a function Evaluation -> value or None.
        direction: which way is better; may be left out for a named metric.
    """

    metric: Measure
    direction: Direction | None = None

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if self.direction is None and isinstance(self.metric, str):
            object.__setattr__(self, "direction", METRICS[self.metric].direction)
        if self.direction not in ("maximize", "minimize"):
            raise UserError(
                f"direction {self.direction!r} of {self.name} is not possible",
                "objective",
                'Write "maximize" or "minimize".',
            )
        if isinstance(self.metric, str) and self.direction != METRICS[self.metric].direction:
            better = METRICS[self.metric].direction
            raise UserError(
                f"{self.name} is better when you {better} it, not {self.direction}", "objective"
            )

    @property
    def name(self) -> str:
        """The metric's name."""
        return name_of(self.metric)

    def signed(self, value: float | None) -> float:
        """The value so that higher is better; undefined is worse than anything."""
        if value is None:
            return -math.inf
        return value if self.direction == "maximize" else -value


def measure(metric: Measure, evaluation: Evaluation) -> float | None:
    """A metric's value by name or function; NaN and infinities become None.

    Raises:
        UserError: the user's own function failed or did not return a number.
    """
    if isinstance(metric, str):
        return METRICS[metric](evaluation)
    try:
        value = metric(evaluation)
        number = None if value is None else float(value)
    except Exception as error:
        raise UserError(
            f"metric {name_of(metric)} failed: {type(error).__name__}: {error}",
            plugins.place(error, inspect.getsourcefile(metric) or ""),
            "It must return a number, or None where it is undefined.",
        ) from error
    return number if number is not None and math.isfinite(number) else None
