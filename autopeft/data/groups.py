"""Words for groups: one function each for age cuts, sex and race. Names, never codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from autopeft.errors import UserError, nearest

UNKNOWN = "unknown"
Names = npt.NDArray[np.str_]

MISSING = frozenset(
    {"", "nan", "none", "na", "n/a", "#n/a", "<na>", "null", "unknown", "unk", "missing"}
    | {"not reported", "not available", "refused", "patient refused", "declined"}
    | {"race and ethnicity unknown"}
)
_SEX = {"m": "M", "male": "M", "f": "F", "female": "F", "o": UNKNOWN, "other": UNKNOWN}
_SEX |= {"u": UNKNOWN}
_ALIASES = {
    "sex": ("gender", "patient_sex", "patient_gender", "patientsex", "patient gender"),
    "age": ("patient_age", "patientage", "patient age", "age_years"),
    "race": ("primary_race", "patient_race"),
}
_CODED = ("sex", "gender", "race", "ethnicity")  # published 0/1 codes contradict each other
_MOST_NAMES = 50
_MOST_NUMBERS = 10


@dataclass(frozen=True)
class Attribute:
    """What a ``--group`` flag asks for.

    Attributes:
        flag: as written, e.g. ``"age:60"``; the key in ``Rows.groups``.
        column: the column, e.g. ``"age"``.
        cut: boundary of a numeric column, or None for words.
    """

    flag: str
    column: str
    cut: float | None = None


def parse(flag: str) -> Attribute:
    """Reads ``sex``, ``age:60`` or any column name, with or without a cut.

    Raises:
        UserError: the cut is not a number.
    """
    column, colon, text = flag.rpartition(":")
    if not colon:
        return Attribute(flag, flag)
    try:
        cut = float(text)
        if not np.isfinite(cut):
            raise ValueError
    except ValueError:
        fix = "Write a number, such as --group age:60."
        raise UserError(f"{text!r} is not a number to cut at", f"--group {flag}", fix) from None
    return Attribute(f"{column}:{cut:g}", column, cut)


def find_column(name: str, columns: pd.Index, flag: str, where: str) -> str:
    """The column that a name means: exact, other case, or a usual spelling of sex, age, race.

    Raises:
        UserError: there is none; the nearest names are offered.
    """
    known = [str(c) for c in columns]
    if name in known:
        return name
    lower = {c.lower(): c for c in reversed(known)}
    for candidate in (name.lower(), *_ALIASES.get(name.lower(), ())):
        if candidate in lower:
            return lower[candidate]
    raise UserError(f"has no column {name!r} ({flag})", where, nearest(name, known))


def group_names(frame: pd.DataFrame, attribute: Attribute, where: str) -> Names:
    """Group of each row, as words: ``"sex=F"``, ``"age>=60"``, ``"unknown"`` where missing.

    Args:
        frame: a table with the attribute's column, and ``path`` (named in messages).
        attribute: what to name.
        where: the table, for the message.

    Returns:
        str [N].

    Raises:
        UserError: no such column, codes instead of words, a number that is none, or an attribute
            with fewer than two values.
    """
    flag = f"--group {attribute.flag}"
    column = find_column(attribute.column, frame.columns, flag, where)
    values = frame[column]
    if attribute.cut is not None:
        numbers = numeric(values, frame["path"], column, where)
        if _is_age(attribute.column):
            numbers = plausible_age(numbers)
        names = cut_at(numbers, attribute)
    else:
        names = _words(values, attribute.column, column, flag, where)
    found = sorted(set(names.tolist()) - {UNKNOWN})
    if len(found) < 2:
        raise UserError(
            f"column {column!r} holds {'only ' + found[0] if found else 'no known value'}",
            f"{where} ({flag})",
            "A group attribute needs at least two values. Drop this --group or move its cut.",
        )
    return names


def numeric(values: pd.Series[Any], paths: pd.Series[Any], column: str, where: str) -> Any:
    """A column as float64 [N] with NaN for blanks.

    Raises:
        UserError: a cell is neither a number nor blank; counts them and shows three.
    """
    numbers = pd.to_numeric(values, errors="coerce")
    bad = numbers.isna()
    text = values[bad].astype("string").str.strip().str.lower().fillna("")
    bad = bad & ~text.isin(MISSING).reindex(values.index, fill_value=True)
    if bad.any():
        shown = "; ".join(
            f"{v!r} at {p}" for v, p in zip(values[bad][:3], paths[bad][:3], strict=True)
        )
        raise UserError(
            f"column {column!r} holds {int(bad.sum())} value(s) that are no number: {shown}",
            where,
            "Write numbers (years for an age) and leave unknown ones blank.",
        )
    return numbers.to_numpy(np.float64, na_value=np.nan)


def distinct(
    values: pd.Series[Any], words: Callable[[pd.Series[Any]], pd.Series[Any]]
) -> pd.Series[Any]:
    """``words(values)``, computed on the distinct values only.

    Args:
        values: a column with few distinct values.
        words: maps each value by itself; it may refuse them.

    Raises:
        UserError: what ``words`` raises on the whole column, so that its counts are true.
    """
    place, found = pd.factorize(values.astype("string").fillna(""))
    try:
        named = words(pd.Series(found, dtype="string"))
    except UserError:
        words(values)
        raise
    return pd.Series(named.to_numpy(dtype=object)[place], index=values.index, dtype="string")


def plausible_age(age: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ages with 0, negative and above 120 as missing (0 and 155 are codes in published sets)."""
    return np.where((age > 0) & (age <= 120), age, np.nan)


def cut_at(numbers: npt.NDArray[np.float64], attribute: Attribute) -> Names:
    """``"age<60"`` and ``"age>=60"``: the boundary belongs to the upper group."""
    assert attribute.cut is not None
    low, high = (f"{attribute.column}{sign}{attribute.cut:g}" for sign in ("<", ">="))
    names = np.where(numbers >= attribute.cut, high, low)
    return np.where(np.isnan(numbers), UNKNOWN, names).astype(np.str_)


def sex_words(values: pd.Series[Any], where: str) -> pd.Series[Any]:
    """``M``, ``F`` or ``unknown``.

    Raises:
        UserError: a code or an unknown word; shows the value counts.
    """
    text = values.astype("string").str.strip().str.lower().fillna("")
    words = text.map(_SEX)
    words = words.mask(text.isin(MISSING), UNKNOWN)
    if words.isna().any():
        raise UserError(
            f"a column of sex holds {_counted(values[words.isna()])}",
            where,
            "Names, not codes: write M or F (male, female), blank where unknown. Published "
            "data sets contradict each other on 0 and 1.",
        )
    return words.astype("string")


def race_words(values: pd.Series[Any]) -> pd.Series[Any]:
    """``White``, ``Black``, ``Asian``, ``Other`` or ``unknown``, by the start of the value."""
    text = values.astype("string").str.strip().fillna("")
    words = pd.Series("Other", index=values.index, dtype="string")
    for word in ("White", "Black", "Asian"):
        words = words.mask(text.str.lower().str.startswith(word.lower()), word)
    return words.mask(text.str.lower().isin(MISSING), UNKNOWN)


def _words(values: pd.Series[Any], name: str, column: str, flag: str, where: str) -> Names:
    """Groups of a column of words."""
    if name.lower() in ("sex", "gender"):
        words = distinct(values, lambda v: sex_words(v, f"{where} (column {column})"))
    else:
        _refuse_codes(values, name, column, flag, where)
        words = distinct(values, _free_words)
    if words.nunique() > _MOST_NAMES:
        raise UserError(
            f"column {column!r} holds {words.nunique()} different values",
            f"{where} ({flag})",
            f"A group attribute has at most {_MOST_NAMES}; is it the right column?",
        )
    named = distinct(words, lambda w: (name + "=" + w).mask(w == UNKNOWN, UNKNOWN))
    return named.to_numpy(dtype=object).astype(np.str_)


def _free_words(values: pd.Series[Any]) -> pd.Series[Any]:
    """Words as they stand, ``unknown`` where one of the usual words for missing stands."""
    text = values.astype("string").str.strip().fillna("")
    return text.mask(text.str.lower().isin(MISSING), UNKNOWN)


def _refuse_codes(values: pd.Series[Any], name: str, column: str, flag: str, where: str) -> None:
    """Numbers where words belong: an age without a cut, a race as 0 and 1."""
    numbers = pd.to_numeric(values, errors="coerce")
    if not numbers.notna().any():
        return
    if name.lower() in _CODED:
        raise UserError(
            f"column {column!r} holds codes: {_counted(values[numbers.notna()])}",
            f"{where} ({flag})",
            "Names, not codes: write the words themselves.",
        )
    if _is_age(name) or numbers.nunique() > _MOST_NUMBERS:
        raise UserError(
            f"column {column!r} holds numbers",
            f"{where} ({flag})",
            f"Say where to cut them, such as --group {name}:{60 if _is_age(name) else 10}.",
        )


def _is_age(name: str) -> bool:
    return name.lower() == "age" or name.lower() in _ALIASES["age"]


def _counted(values: pd.Series[Any]) -> str:
    """``'0' x 12, '1' x 8``: the most frequent values."""
    counts = values.astype("string").value_counts().head(5)
    return ", ".join(f"{value!r} x {n}" for value, n in counts.items())
