"""Fields in Optuna's words: what is read, and what is refused with file and field."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autopeft.errors import UserError
from autopeft.ranges import read_field, read_yaml


def test_a_plain_value_is_fixed_and_never_suggested():
    field = read_field("lora.r", 8, "f: lora.r")
    assert field.distribution is None
    assert field.draw(optuna.trial.FixedTrial({})) == 8


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"choices": [1, 2]}, CategoricalDistribution([1, 2])),
        ({"type": "int", "low": 1, "high": 9, "step": 2}, IntDistribution(1, 9, step=2)),
        ({"type": "int", "low": 1, "high": 64, "log": True}, IntDistribution(1, 64, log=True)),
        ({"type": "float", "low": 0, "high": 1, "step": 0.1}, FloatDistribution(0, 1, step=0.1)),
        (
            {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            FloatDistribution(1e-5, 1e-2, log=True),
        ),
    ],
)
def test_ranges_are_optunas(spec, expected):
    assert read_field("x", spec, "here").distribution == expected


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"type": "int", "low": 9, "high": 1}, "the range is empty: low 9 > high 1"),
        ({"choices": []}, "there are no choices"),
        ({"choices": [1, 1]}, "given twice"),
        ({"choices": [[1, 2]]}, "not a plain value"),
        ({"choices": [1], "low": 1}, "does not go with choices"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "log range cannot start at 0"),
        ({"type": "float", "low": -1, "high": 1, "log": True}, "log range cannot start at -1"),
        ({"type": "float", "low": "a", "high": 1}, "not a number"),
        ({"type": "int", "low": 1.5, "high": 3}, "not a whole number"),
        ({"type": "float", "low": float("nan"), "high": 1}, "not a number"),
        ({"type": "int", "low": 1, "high": 4, "step": 2}, "do not end at 4"),
        ({"type": "int", "low": 1, "hihg": 4}, 'Did you mean "high"?'),
        ({"type": "integer", "low": 1, "high": 4}, "Write int or float"),
        ({"type": "int", "low": 1}, "'high' is missing"),
        ({"type": "int", "low": 1, "high": 4, "log": "yes"}, "Write true or false"),
        ([1, 2], "is not understood"),
        (None, "is not understood"),
    ],
)
def test_what_is_no_range_is_refused_by_name(spec, said):
    with pytest.raises(UserError, match="my.yaml, methods.lora.r") as error:
        read_field("lora.r", spec, "my.yaml, methods.lora.r")
    assert said in str(error.value)


def test_yaml_reads_exponents_as_numbers_and_refuses_double_keys():
    assert read_yaml("a: 2e-4\nb: 1E3\nc: -1.5e+2\nd: 12\ne: e5", "f") == {
        "a": 2e-4,
        "b": 1e3,
        "c": -150.0,
        "d": 12,
        "e": "e5",
    }
    with pytest.raises(UserError, match="line 3: 'a' is given twice"):
        read_yaml("a: 1\nb: 2\na: 3", "f")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml("a: [1", "f")
    with pytest.raises(UserError, match="holds no search space"):
        read_yaml("", "f")


def test_contains_does_not_mix_types():
    choices = read_field("x", {"choices": [1, 2, "all"]}, "f")
    assert choices.contains(1)
    assert not choices.contains(True)
    assert not choices.contains("1")
    assert choices.contains("all")
    log = read_field("x", {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}, "f")
    assert log.contains(1e-3)
    assert not log.contains(1.0)
    assert not log.contains("1e-3")
