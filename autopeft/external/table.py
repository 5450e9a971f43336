"""``predictions.csv`` of an evaluation."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from autopeft.evaluation import Predictions
from autopeft.files import write_text
from autopeft.job import Rows


def write_predictions(path: Path, rows: Rows, p: Predictions) -> None:
    """One line an image and class (mode 0600: it names patients).

    Args:
        path: the file.
        rows: the images.
        p: the adapter's predictions on them.
    """
    stream = io.StringIO()
    write = csv.writer(stream, lineterminator="\n")
    write.writerow(["path", "patient_id", "label", "target", "score"])
    probability = p.probability
    for i in range(len(rows)):
        for c, label in enumerate(p.classes):
            target = p.target[i, c]
            shown = "" if target != target else f"{target:g}"
            write.writerow(
                [rows.path[i], rows.patient[i], label, shown, f"{probability[i, c]:.9g}"]
            )
    write_text(path, stream.getvalue(), 0o600)
