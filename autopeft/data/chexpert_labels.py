"""CheXpert's labels: 1, 0, uncertain (-1) and blank, and what a policy makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from autopeft.data.download import require_values
from autopeft.data.frame import Labels, Names
from autopeft.data.groups import UNKNOWN

NO_FINDING = "No Finding"
LABELS = (
    NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
TASKS = {
    "chexpert5": ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"),
    "no_finding": (NO_FINDING,),
}

# What an uncertain label becomes in train. `mixed` is the recipe behind most published numbers on
# the five findings (Yuan et al. 2021, LibAUC); `medpeft` is what the lists of MED-PEFT (Lian et
# al. 2024) hold. The other nine labels are ignored by both.
_NEGATIVE = {"Cardiomegaly": 0.0, "Consolidation": 0.0}
_MIXED = _NEGATIVE | {"Edema": 1.0, "Atelectasis": 1.0, "Pleural Effusion": 0.0}
POLICIES: Mapping[str, Mapping[str, float]] = {
    "ignore": {},
    "ones": dict.fromkeys(LABELS, 1.0),
    "zeros": dict.fromkeys(LABELS, 0.0),
    "mixed": _MIXED,
    "medpeft": _MIXED | {"Pleural Effusion": 1.0},
}
BLANKS = ("zero", "ignore")

Codes = npt.NDArray[np.float32]
_CODES = {"1.0": 1.0, "0.0": 0.0, "-1.0": -1.0, "1": 1.0, "0": 0.0, "-1": -1.0, "": np.nan}


def read_codes(values: pd.Series[Any], where: str) -> Codes:
    """Cells of one label column: 1, 0, -1 = uncertain, NaN = blank; float32 [N].

    Raises:
        UserError: any other cell; shows the value counts.
    """
    place, found = pd.factorize(values.fillna(""))
    texts = [str(text).strip() for text in found]
    if not set(texts) <= set(_CODES):
        require_values(values.fillna("").str.strip(), ("1.0", "0.0", "-1.0", ""), where)
    return np.array([_CODES[text] for text in texts], np.float32)[place]


def training_labels(codes: Mapping[str, Codes], classes: tuple[str, ...], policy: str) -> Labels:
    """Labels for ``train``, float32 [N, C]: uncertain ones as the policy says, blanks stay NaN.

    Args:
        codes: label -> codes.
        classes: the labels of the task.
        policy: a key of ``POLICIES``.
    """
    becomes = POLICIES[policy]
    columns = [np.where(codes[c] == -1, becomes.get(c, np.nan), codes[c]) for c in classes]
    return np.stack(columns, axis=1).astype(np.float32)


def judged_labels(codes: Mapping[str, Codes], classes: tuple[str, ...]) -> Labels:
    """Labels for evaluated splits: an uncertain one is NaN whatever the training policy."""
    return training_labels(codes, classes, "ignore")


def fill_blanks(
    label: Labels, codes: Mapping[str, Codes], classes: tuple[str, ...], blank: str
) -> Labels:
    """Blanks as the option says.

    ``zero``: a finding that the report does not mention is absent. ``ignore``: only where the
    report says No Finding; that does not speak of support devices. The column No Finding itself
    holds 1 or blank, so blank is its negative.
    """
    healthy = codes[NO_FINDING] == 1
    filled = label.copy()
    for c, name in enumerate(classes):
        empty = np.isnan(codes[name])
        if name != NO_FINDING and blank == "ignore":
            empty &= healthy & (name != "Support Devices")
        filled[empty, c] = 0.0
    return filled


def policy_notes(classes: tuple[str, ...], policy: str, blank: str) -> list[str]:
    """The label policy in words."""
    becomes = POLICIES[policy]
    words = {
        value: [c for c in classes if becomes.get(c) == value and c != NO_FINDING]
        for value in (1.0, 0.0, None)
    }
    parts = [
        f"{meaning} for {', '.join(words[value])}"
        for value, meaning in ((1.0, "1"), (0.0, "0"), (None, "ignored"))
        if words[value]
    ]
    notes = []
    if parts:
        notes.append(
            f"uncertain labels in train ({policy}): {'; '.join(parts)}. In evaluated splits an "
            "uncertain label is ignored whatever the policy"
        )
        notes.append(
            "a blank label is 0: the report does not mention the finding"
            if blank == "zero"
            else "a blank label is ignored, except 0 where the report says No Finding"
        )
    if NO_FINDING in classes:
        notes.append("No Finding: a blank is the negative, and the positive class is the healthy")
    return notes


def rate_notes(
    codes: Mapping[str, Codes], classes: tuple[str, ...], groups: Mapping[str, Names]
) -> list[str]:
    """Shares of uncertain and blank labels, for all images and for each group.

    Args:
        codes: label -> codes [N], before any policy.
        classes: the labels of the task.
        groups: attribute -> group names [N].
    """
    findings = [c for c in classes if c != NO_FINDING]
    if not findings:
        return []
    members = {"all images": np.ones(len(codes[findings[0]]), np.bool_)}
    for names in groups.values():
        members |= {str(g): names == g for g in np.unique(names) if g != UNKNOWN}
    notes = []
    for group, member in members.items():
        rates = ", ".join(
            f"{c} {(codes[c][member] == -1).mean():.1%} / {np.isnan(codes[c][member]).mean():.1%}"
            for c in findings
        )
        notes.append(f"uncertain / blank before the policy, {group}: {rates}")
    return notes
