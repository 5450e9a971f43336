"""One film under several patient ids is told, and who is judged on what was trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from autopeft.data.twins import twin_notes

JUDGED = ("search", "confirm", "test")


def notes(*rows):
    """Notes of (patient, split, mark) rows."""
    patient, split, mark = zip(*rows, strict=True)
    table = pd.DataFrame({"patient_id": patient, "split": split})
    return twin_notes(table, np.array(mark, np.uint64), JUDGED)


def test_images_of_their_own_are_nothing_to_say():
    assert notes(("a", "train", 1), ("b", "test", 2)) == ()
    # The same film twice for one patient is one patient, wherever they are.
    assert notes(("a", "train", 1), ("a", "train", 1), ("b", "test", 2)) == ()


def test_who_is_judged_on_a_film_of_train_is_counted_by_split():
    (line,) = notes(
        ("a", "train", 1), ("b", "test", 1), ("c", "test", 1), ("c", "test", 7),
        ("d", "train", 2), ("e", "search", 2), ("f", "confirm", 3), ("g", "test", 3),
    )  # fmt: skip
    assert line == (
        "7 patients share an identical image with another patient id; 1 of search, 2 of test "
        "share one with train: what they are judged on was trained on. If they are the same "
        "people, give them one id"
    )


def test_twins_inside_a_split_are_told_without_a_leak():
    (line,) = notes(("a", "train", 1), ("b", "train", 1), ("c", "test", 2))
    assert line.startswith("2 patients share an identical image with another patient id. If")
