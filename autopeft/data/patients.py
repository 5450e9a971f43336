"""Patient ids of a table: one spelling for each patient, and never a word for "missing"."""

from __future__ import annotations

from typing import Any

import pandas as pd

from autopeft.data.groups import MISSING
from autopeft.errors import UserError

_WHOLE = r"(\d+)\.0+"  # how a merge in a spreadsheet or in pandas rewrites the id 100


def patient_ids(values: pd.Series[Any], column: str, where: str) -> pd.Series[Any]:
    """Patient ids as text, in the one spelling that splits and intervals may rely on.

    Blanks around an id go. In a column of whole numbers ``100.0`` is ``100``; leading zeros
    stay, since ``001`` and ``1`` may be two patients.

    Args:
        values: the column as read.
        column: its name, for messages.
        where: the table, for messages.

    Raises:
        UserError: a cell is blank or a word such as ``nan`` or ``unknown``; or two ids differ
            only in case or in a trailing ``.0``.
    """
    ids = values.astype("string").str.strip().fillna("")
    missing = ids.str.casefold().isin(MISSING)
    if missing.any():
        words = sorted(set(ids[missing]) - {""})
        shown = f" (blank or {', '.join(map(repr, words[:3]))})" if words else ""
        raise UserError(
            f"patient column {column!r} is blank in {int(missing.sum())} row(s){shown}",
            where,
            "Every image needs a patient: splits are made by patient.",
        )
    if ids.str.fullmatch(rf"\d+|{_WHOLE}").all():
        ids = ids.str.replace(rf"^{_WHOLE}$", r"\1", regex=True)
    _refuse_alike(ids, column, where)
    return ids


def _refuse_alike(ids: pd.Series[Any], column: str, where: str) -> None:
    """Two spellings of what is probably one patient would land in two splits."""
    spellings = pd.Series(ids.unique(), dtype="string")
    plain = spellings.str.casefold().str.replace(rf"^{_WHOLE}$", r"\1", regex=True)
    alike = plain.duplicated(keep=False)
    if alike.any():
        first = spellings[plain == plain[alike].iloc[0]].tolist()
        raise UserError(
            f"patient column {column!r} spells {plain[alike].nunique()} patient(s) in more than "
            f"one way, e.g. {' and '.join(map(repr, first[:2]))}",
            where,
            "Write each patient in one way; or give patients that differ clearly other ids.",
        )
