import sys

import openpyxl
import pytest
from chexpert_tree import RACES, write_sheet

from autopeft.data.demographics import find_sheet, read_sheet
from autopeft.errors import UserError


def test_published_words_become_five(tmp_path):
    table = read_sheet(write_sheet(tmp_path / "d.xlsx", range(len(RACES))))
    assert dict(zip(table["race_raw"], table["race"], strict=True)) == {
        "White": "White",
        "Black or African American": "Black",
        "Asian": "Asian",
        "Other": "Other",
        "White, non-Hispanic": "White",
        "Black, non-Hispanic": "Black",
        "Asian, non-Hispanic": "Asian",
        "Native Hawaiian or Other Pacific Islander": "Other",
        "Unknown": "unknown",
        "Race and Ethnicity Unknown": "unknown",
        "Patient Refused": "unknown",
        "": "unknown",
    }


def test_a_patient_whose_rows_disagree_has_no_race(tmp_path):
    again = ["patient00000", "Female", 40, "Asian", ""]
    same = ["patient00001", "Female", 40, "Black, non-Hispanic", ""]
    sheet = write_sheet(tmp_path / "d.xlsx", range(3), extra=[again, same])
    race = read_sheet(sheet)["race"]
    assert race["patient00000"] == "unknown"
    assert race["patient00001"] == "Black"
    assert len(race) == 3


def test_both_names_beside_the_table_or_above(tmp_path):
    inner = tmp_path / "CheXpert-v1.0"
    inner.mkdir()
    assert find_sheet(inner, "") is None
    above = write_sheet(tmp_path / "CHEXPERT_DEMO.xlsx", range(3))
    assert find_sheet(inner, "") == above
    beside = write_sheet(inner / "CHEXPERT DEMO.xlsx", range(3))
    assert find_sheet(inner, "") == beside


def test_openpyxl_is_named_where_it_is_missing(tmp_path, monkeypatch):
    sheet = write_sheet(tmp_path / "d.xlsx", range(3))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"pip install 'autopeft\[xlsx\]'"):
        read_sheet(sheet)


def test_a_strange_header_is_shown(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["PATIENT", "RACE"])
    book.save(tmp_path / "d.xlsx")
    with pytest.raises(UserError, match="lacks 'GENDER', .*its header is PATIENT, RACE"):
        read_sheet(tmp_path / "d.xlsx")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"a,b\n1,2\n"])
def test_a_file_that_is_no_spreadsheet(tmp_path, content):
    (tmp_path / "d.xlsx").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a spreadsheet"):
        read_sheet(tmp_path / "d.xlsx")
