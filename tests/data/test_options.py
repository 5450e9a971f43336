import pytest

from autopeft.data.options import read_options
from autopeft.errors import UserError

DEFAULTS = {"patients": 400, "contrast": 1.0, "view": "frontal"}


def test_values_take_the_type_of_their_default():
    given = {"patients": "12", "contrast": "0.5", "view": "pa"}
    assert read_options(given, DEFAULTS, "d") == {"patients": 12, "contrast": 0.5, "view": "pa"}
    assert read_options(None, DEFAULTS, "d") == DEFAULTS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"patient": "3"}, 'Did you mean "patients"'),
        ({"patients": "3.5"}, "not a whole number"),
        ({"contrast": "high"}, "not a number"),
        ({"view": "lateral"}, "is not possible"),
    ],
)
def test_bad_options(given, words):
    with pytest.raises(UserError, match=words):
        read_options(given, DEFAULTS, "d", {"view": ("frontal", "pa")})
