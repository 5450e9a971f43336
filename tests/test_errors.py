"""One clear line: what, where, what to do."""

from autopeft.errors import UserError, nearest


def test_the_line_says_what_where_and_what_to_do():
    error = UserError("no column 'sxe'", "labels.csv", "Columns: sex, age.")
    assert str(error) == "labels.csv: no column 'sxe'. Columns: sex, age."
    assert (error.what, error.where, error.fix) == (
        "no column 'sxe'",
        "labels.csv",
        "Columns: sex, age.",
    )
    assert str(UserError("is empty", "labels.csv")) == "labels.csv: is empty"
    assert str(UserError("is empty")) == "is empty"


def test_nearest():
    known = ["lora", "bitfit", "full"]
    assert nearest("lroa", known) == 'Did you mean "lora"? Known: bitfit, full, lora'
    assert nearest("zzzzzz", known) == "Known: bitfit, full, lora"
    assert nearest("x", []) == "Known: "
