from pathlib import Path

import numpy as np
import pytest

from autopeft.data.whole import Whole
from autopeft.errors import UserError
from autopeft.external.labels import asked_labels, check_map, map_labels
from autopeft.job import Rows


def data(classes, label, kind="multilabel"):
    label = np.array(label, np.float32)
    n = len(label)
    names = np.array([f"{i}.png" for i in range(n)])
    rows = Rows(names, np.arange(n), names, label, {})
    return Whole("d", kind, "patient", tuple(classes), Path(), rows, ())


def test_names_meet_without_case_and_underscores_and_the_rest_is_named():
    found = map_labels(
        data(["pleural_effusion", "edema"], [[1, 0], [0, np.nan]]),
        ("Edema", "Pleural Effusion", "Fracture"), "multilabel", {},
    )  # fmt: skip
    assert found.theirs == {"Edema": "edema", "Pleural Effusion": "pleural_effusion"}
    assert found.unmapped == ("Fracture",)
    expected = [[0, 1, np.nan], [np.nan, 0, np.nan]]
    assert np.array_equal(found.target, expected, equal_nan=True)


def test_the_map_says_what_names_do_not():
    found = map_labels(data(["infiltrate"], [[1], [0]], "binary"), ("pneumonia",), "binary",
                       {"pneumonia": "infiltrate"})  # fmt: skip
    assert found.theirs == {"pneumonia": "infiltrate"}
    assert found.target[:, 0].tolist() == [1, 0]


def test_one_class_against_the_words_of_a_column():
    words = data(["bacterial", "normal", "viral"], np.eye(3), "multiclass")
    found = map_labels(words, ("pneumonia",), "binary", {"pneumonia": "viral"})
    assert found.target[:, 0].tolist() == [0, 0, 1]
    assert "against all the others" in found.notes[0]


def test_of_several_classes_foreign_ones_are_left_out_and_absent_ones_have_nobody():
    words = data(["a", "b", "x"], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [np.nan] * 3], "multiclass")
    found = map_labels(words, ("b", "a", "c"), "multiclass", {})
    expected = [[0, 1, 0], [1, 0, 0], [np.nan] * 3, [np.nan] * 3]
    assert np.array_equal(found.target, expected, equal_nan=True)
    assert found.unmapped == ("c",)
    assert "1 images of classes that the adapter does not have (x)" in found.notes[0]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_of_several_classes_no_two_are_one_label(kind):
    several = data(["x", "y"], np.eye(2), kind)
    both = {"a": "x", "b": "x"}
    with pytest.raises(UserError, match="classes a, b are all the label 'x'"):
        map_labels(several, ("a", "b"), "multiclass", both)
    assert map_labels(several, ("a", "b"), "multilabel", both).theirs == both  # each by itself


@pytest.mark.parametrize(
    ("given", "classes", "message"),
    [
        ({}, ("pneumonia",), "no class of the adapter .pneumonia. is a label of the data .edema."),
        ({"pneumonia": "oedema"}, ("pneumonia",), 'Did you mean "edema"'),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(given, classes, message):
    with pytest.raises(UserError, match=message) as error:
        map_labels(data(["edema"], [[1], [0]], "binary"), classes, "binary", given)
    assert "\n" not in str(error.value)


def test_a_class_that_the_adapter_lacks():
    with pytest.raises(UserError, match="the adapter has no class 'pneumona'.*Did you mean"):
        check_map({"pneumona": "x"}, ("pneumonia",))


def test_labels_to_read():
    known = ("path", "Pleural_Effusion", "opacity", "sex")
    classes = ("pleural effusion", "edema")
    assert asked_labels(("x",), {}, classes, known) == ("x",)
    assert asked_labels((), {}, classes, known) == ("Pleural_Effusion",)
    assert asked_labels((), {"edema": "opacity"}, classes, known) == (
        "Pleural_Effusion",
        "opacity",
    )
    assert asked_labels((), {}, ("nothing",), known) == ()
