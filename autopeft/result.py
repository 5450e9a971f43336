"""Result: what the user gets, read back from a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft import settings as settings_file
from autopeft.errors import UserError

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from torch import nn

    from autopeft.adapter import Model
    from autopeft.drawing import Figure


@dataclass(frozen=True)
class Best:
    """The winner, or a baseline.

    Attributes:
        name: ``winner``, ``lora_r8`` ...
        folder: its adapter folder.
        numbers: its part of ``result.json``.
        weights: the backbone's weights file, if one was used.
    """

    name: str
    folder: Path
    numbers: Mapping[str, Any]
    weights: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The candidate as plain data."""
        return dict(self.numbers["config"])

    @property
    def test(self) -> Mapping[str, Any]:
        """Metric -> value, low, high on the test patients."""
        return self.numbers["test"]  # type: ignore[no-any-return]

    def adapter(self) -> Model:
        """The adapter with ``predict(paths)``."""
        from autopeft.adapter import load_adapter

        return load_adapter(self.folder, self.weights)

    def load(self) -> nn.Module:
        """The model from normalized pixels [B, 3, S, S] to logits [B, C]."""
        return self.adapter().model


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: ``runs/NAME``.
        numbers: all of ``result.json``.
    """

    folder: Path
    numbers: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return str(self.numbers["verdict"])

    @property
    def best(self) -> Best:
        """The winner."""
        return Best("winner", self.folder / "best", self.numbers["best"], self._weights())

    @property
    def baselines(self) -> dict[str, Best]:
        """The baselines by name."""
        return {
            name: Best(name, self.folder / "baselines" / name, numbers, self._weights())
            for name, numbers in self.numbers["baselines"].items()
        }

    @property
    def front(self) -> list[dict[str, Any]]:
        """Number, config and values of the feasible, non-dominated, fully trained trials."""
        return list(self.numbers["front"])

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial."""
        import pandas as pd

        return pd.read_csv(self.folder / "trials.csv")

    @property
    def study(self) -> optuna.Study:
        """The Optuna study of the trials, e.g. for ``optuna.visualization`` (plotly)."""
        from autopeft.study import load_search

        return load_search(self.folder)

    def plot_front(self) -> Figure | None:
        """The front: every trial, the winner and the baselines; a notebook shows it."""
        from autopeft.plot import plot_front, read_points

        terms = list(self.front[0]["values"]) if self.front else []
        return plot_front(self.numbers, read_points(self.folder, terms))

    def plot_groups(self, label: str) -> Figure | None:
        """Winner and opponent by group of patients, for one label."""
        from autopeft.plot import plot_groups

        return plot_groups(self.numbers, label)

    def _weights(self) -> str | None:
        saved = settings_file.load(self.folder / "settings.yaml")
        return saved.get("weights")


def load_result(folder: str | Path) -> Result:
    """Reads a finished run.

    Raises:
        UserError: no such run, or it is not finished.
    """
    folder = Path(folder)
    file = folder / "result.json"
    if not file.exists():
        unfinished = (folder / "study.journal").exists()
        raise UserError(
            "the run is not finished" if unfinished else "is no run",
            str(folder),
            "Give the same search command again to go on." if unfinished else "",
        )
    try:
        numbers = json.loads(file.read_text())
        numbers["verdict"], numbers["best"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            "is damaged", str(file), "Remove it; the search command then writes it again."
        ) from None
    return Result(folder, numbers)
