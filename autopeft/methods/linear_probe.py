"""The linear probe: a head on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from autopeft.methods.method import Method, Rate


@dataclass(frozen=True)
class LinearProbe(Method):
    """Trains the head alone, to its optimum, on features that are computed once."""

    name: ClassVar[str] = "linear_probe"
    family: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "Alain and Bengio 2016, arXiv:1610.01644"
    summary: ClassVar[str] = "Trains the head on frozen features."
    rates: ClassVar[Mapping[str, Rate]] = {"lbfgs": Rate(1e-3, 1e-4, 1e-1)}
    placed: ClassVar[bool] = False
