"""What an external validation is asked: one field for each flag of ``autopeft evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from autopeft.data.whole import ALL
from autopeft.errors import UserError, nearest
from autopeft.metrics.groups import LEAST
from autopeft.settings import Settings


@dataclass(frozen=True)
class Asked:
    """The options of ``autopeft.evaluate``.

    Attributes:
        data_root: folder of the images, as for a search; likewise the next five.
        label: labels of the data; by default those that the adapter's classes are called.
        group: attributes of patients; by default those of the adapter's run, where they are there.
        patient_column: column of the patient id.
        split_column: column with the data's own splits, for ``split``.
        data_option: options of the data set.
        label_map: class of the adapter -> label of the data, where the names differ.
        split: one of the data's own splits, or ``all``.
        min_group: patients with and without a finding that a group needs to be scored.
        leave_out_trained: leave out patients that the adapter was trained on, instead of refusing.
        name: of the evaluation; by default made from adapter and data.
        out: folder of all evaluations.
        runs_dir: folder of the runs, whose ledger knows test patients; where the adapter lies in
            a run, that run's.
        weights: the backbone's weights file, if one was used in training.
        offline: never ask a hub.
        batch_size: images a forward pass.
        quiet: no progress on stderr.
    """

    data_root: str | None = None
    label: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    patient_column: str | None = None
    split_column: str | None = None
    data_option: Mapping[str, str] | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    split: str = ALL
    min_group: int = LEAST
    leave_out_trained: bool = False
    name: str = ""
    out: str | Path = "evaluations"
    runs_dir: str | Path = "runs"
    weights: str | None = None
    offline: bool = False
    batch_size: int = 64
    quiet: bool = True

    def __post_init__(self) -> None:
        for key in ("label", "group"):
            value = getattr(self, key)
            object.__setattr__(self, key, (value,) if isinstance(value, str) else tuple(value))
        if self.min_group < LEAST:
            fix = f"A group is scored from {LEAST} positive and {LEAST} negative patients on."
            raise UserError(f"{self.min_group} is too small", "--min-group", fix)
        if self.batch_size < 1:
            fix = "It must be at least 1."
            raise UserError(f"{self.batch_size} is too small", "--batch-size", fix)

    @staticmethod
    def of(options: Mapping[str, Any]) -> Asked:
        """Checks the names of options.

        Raises:
            UserError: there is no such option, or a value is impossible.
        """
        known = [f.name for f in fields(Asked)]
        for key in options:
            if key not in known:
                raise UserError(
                    f"unknown option {key!r}", "autopeft.evaluate", nearest(key, known)
                )
        return Asked(**options)

    @property
    def cache(self) -> Path:
        """Folder of decoded images."""
        return Path(self.out) / ".cache"

    def settings(self, dataset: str) -> Settings:
        """What a loader of data is asked."""
        return Settings(
            dataset=dataset,
            data_root=self.data_root,
            label=self.label,
            group=self.group,
            patient_column=self.patient_column,
            split_column=self.split_column,
            data_option=self.data_option,
        )
