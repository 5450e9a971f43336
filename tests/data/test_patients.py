import pandas as pd
import pytest

from autopeft.data.patients import patient_ids
from autopeft.errors import UserError


def ids(*cells):
    return patient_ids(pd.Series(cells, dtype="string"), "who", "labels.csv").tolist()


def test_whole_numbers_lose_the_point_of_a_merge_and_keep_their_zeros():
    assert ids("100", "100.0", " 7 ", "007.00") == ["100", "100", "7", "007"]
    assert ids("P1", "v1.0") == ["P1", "v1.0"]
    assert ids("P1", "100.0") == ["P1", "100.0"]


@pytest.mark.parametrize("word", ["", "  ", None, "nan", "NA", "Unknown", "none", "#N/A"])
def test_a_word_for_missing_is_no_patient(word):
    with pytest.raises(UserError, match=r"column 'who' is blank in 2 row\(s\)"):
        ids("P1", word, word)


def test_two_spellings_of_a_patient_are_refused():
    with pytest.raises(UserError, match="spells 1 patient.* e.g. 'P1' and 'p1'"):
        ids("P1", "P2", " p1 ", "P1")
    with pytest.raises(UserError, match="spells 2 patient.* e.g. '100' and '100.0'"):
        ids("100", "a", "100.0", "A")
