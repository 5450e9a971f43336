"""CheXpert's demographics spreadsheet: race (and sex and age where a table lacks them)."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autopeft.data.download import require_columns
from autopeft.data.groups import UNKNOWN, distinct, race_words
from autopeft.errors import UserError

SHEETS = ("CHEXPERT DEMO.xlsx", "CHEXPERT_DEMO.xlsx")
_COLUMNS = ("PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE")


def find_sheet(folder: Path, named: str) -> Path | None:
    """The spreadsheet: as named by the user, or beside ``train.csv``, or one folder above.

    Raises:
        UserError: the named file does not exist.
    """
    if named:
        path = Path(named)
        if not path.is_file():
            raise UserError("there is no such file", f"--data-option demographics={named}")
        return path
    places = [place / name for place in (folder, folder.resolve().parent) for name in SHEETS]
    return next((path for path in places if path.is_file()), None)


def read_sheet(path: Path) -> pd.DataFrame:
    """One row a patient: index ``patient_id``, columns ``race``, ``race_raw``, ``sex``, ``age``.

    A patient whose rows disagree on the race has none (``unknown``).

    Raises:
        UserError: openpyxl is not installed, or the file is not the spreadsheet.
    """
    frame = _read_first_sheet(path)
    frame = frame[frame["PATIENT"].notna()]
    raw = frame["PRIMARY_RACE"].astype("string").str.strip().fillna("")
    table = pd.DataFrame(
        {
            "patient_id": frame["PATIENT"].astype("string").str.strip().str.lower(),
            "race": distinct(raw, race_words),
            "race_raw": raw,
            "sex": frame["GENDER"].astype("string"),
            "age": pd.to_numeric(frame["AGE_AT_CXR"], errors="coerce").astype("float64"),
        }
    )
    several = table.groupby("patient_id")["race"].transform("nunique") > 1
    table = table.assign(race=table["race"].mask(several, UNKNOWN))
    return table.drop_duplicates("patient_id").set_index("patient_id")


def _read_first_sheet(path: Path) -> pd.DataFrame:
    """The first sheet, up to the last column of use (65,000 rows take seconds); cells as are."""
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            "reading the demographics spreadsheet needs openpyxl, which is not installed",
            str(path),
            "Run pip install 'autopeft[xlsx]', or name groups without race: --group sex "
            "--group age:60.",
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()
            header = [str(c).strip() for c in next(sheet.iter_rows(values_only=True), ())]
            require_columns(pd.DataFrame(columns=pd.Index(header)), _COLUMNS, str(path))
            width = 1 + max(header.index(name) for name in _COLUMNS)
            rows = list(sheet.iter_rows(min_row=2, max_col=width, values_only=True))
            book.close()
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise UserError(f"cannot be read as a spreadsheet ({text})", str(path)) from None
    cells = [(*row, *[None] * (width - len(row))) for row in rows]
    return pd.DataFrame(cells, columns=pd.Index(header[:width]), dtype=object)


def race_notes(race: pd.Series[Any], raw: pd.Series[Any], sheet: Path) -> list[str]:
    """Which texts of the spreadsheet became which race, in numbers of images."""
    notes = []
    counts = pd.DataFrame({"race": race, "raw": raw}).value_counts()
    for word in np.unique(race.to_numpy(dtype=object).astype(np.str_)):
        texts = counts[counts.index.get_level_values("race") == word]
        listed = ", ".join(f"{t or 'blank'} ({n})" for (_, t), n in texts.head(6).items())
        more = f" and {len(texts) - 6} more" if len(texts) > 6 else ""
        name = "no race" if word == UNKNOWN else f"race={word}"
        notes.append(f"{name}, images by the words of {sheet.name}: {listed}{more}")
    return notes
