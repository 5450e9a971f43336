import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.data.groups import Attribute, cut_at, group_names, parse, race_words, sex_words
from autopeft.errors import UserError


def names(values, flag):
    column = parse(flag).column
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(len(values))], column: values})
    return group_names(frame, parse(flag), "t.csv").tolist()


def test_the_boundary_belongs_to_the_upper_group():
    assert names(["59", "60", "61", "", "0", "-3", "121"], "age:60") == [
        "age<60", "age>=60", "age>=60", "unknown", "unknown", "unknown", "unknown",
    ]  # fmt: skip


def test_only_ages_have_impossible_values():
    assert names(["0", "200"], "dose:100") == ["dose<100", "dose>=100"]


NUMBERS = st.floats(-100, 200) | st.just(float("nan"))


@given(st.floats(-100, 200), st.lists(NUMBERS, min_size=1))
def test_every_number_has_one_side(cut, numbers):
    for number, name in zip(
        numbers, cut_at(np.array(numbers), Attribute("x", "x", cut)), strict=True
    ):
        if np.isnan(number):
            assert name == "unknown"
        else:
            assert name == (f"x>={cut:g}" if number >= cut else f"x<{cut:g}")


@pytest.mark.parametrize("flag", ["age:sixty", "age:", "age:nan", "age:inf"])
def test_a_cut_that_is_no_number(flag):
    with pytest.raises(UserError, match="not a number to cut at"):
        parse(flag)


def test_sex_is_words():
    assert names(["male", "Female", " m ", "F", "Unknown", "O", ""], "sex") == [
        "sex=M", "sex=F", "sex=M", "sex=F", "unknown", "unknown", "unknown",
    ]  # fmt: skip


@pytest.mark.parametrize("values", [["0", "1", "1"], ["M", "1", "F"], ["man", "woman", ""]])
def test_codes_of_sex_are_refused(values):
    with pytest.raises(UserError, match="Names, not codes"):
        names(values, "sex")


def test_codes_of_race_are_refused():
    with pytest.raises(UserError, match="Names, not codes"):
        names(["0", "1", "2"], "race")


def test_race_by_the_start_of_the_value():
    raw = pd.Series(
        ["White, non-Hispanic", "Black or African American", "Asian", "Other, Hispanic", "Unknown",
         "Patient Refused", "Race and Ethnicity Unknown", None, "American Indian"]
    )  # fmt: skip
    assert race_words(raw).tolist() == [
        "White", "Black", "Asian", "Other", "unknown", "unknown", "unknown", "unknown", "Other",
    ]  # fmt: skip


def test_other_columns_and_spellings():
    assert names(["site A", "site B", "nan"], "center") == [
        "center=site A", "center=site B", "unknown",
    ]  # fmt: skip
    assert names(["1", "2", "2"], "site") == ["site=1", "site=2", "site=2"]
    frame = pd.DataFrame({"path": ["a", "b"], "Patient Gender": ["M", "F"], "AGE": ["3", "70"]})
    assert group_names(frame, parse("sex"), "t").tolist() == ["sex=M", "sex=F"]
    assert group_names(frame, parse("age:60"), "t").tolist() == ["age<60", "age>=60"]


@pytest.mark.parametrize(
    ("values", "flag", "words"),
    [
        (["12", "sixty", "70"], "age:60", ["1 value", "'sixty' at 1.png", "Write numbers"]),
        (["61", "70", ""], "age:60", ["only age>=60", "at least two"]),
        (["", "", ""], "sex", ["no known value"]),
        (["30", "40", "50"], "age", ["holds numbers", "--group age:60"]),
        ([str(i) for i in range(20)], "bmi", ["holds numbers", "--group bmi:"]),
        ([f"id{i}" for i in range(60)], "site", ["60 different values"]),
    ],
)
def test_bad_group_columns(values, flag, words):
    with pytest.raises(UserError) as caught:
        names(values, flag)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_column_offers_the_nearest():
    with pytest.raises(UserError, match='Did you mean "scanner"'):
        group_names(pd.DataFrame({"path": ["a"], "scanner": ["A"]}), parse("scaner"), "t.csv")


def test_sex_words_show_what_they_refuse():
    with pytest.raises(UserError, match="'1' x 2"):
        sex_words(pd.Series(["1", "1", "M"]), "t.csv")
