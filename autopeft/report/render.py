"""From ``result.json`` to ``report.html``: one file, no script, nothing loaded from anywhere.

The page says what ``result.json`` says and computes nothing of its own. It holds no patient id and
no path.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from autopeft import choice_words, patient_words, words
from autopeft.files import write_text
from autopeft.plot import plot_front, plot_groups, read_points
from autopeft.words import Numbers

Row = Mapping[str, Any]


def write_report(folder: Path, numbers: Numbers) -> Path:
    """Writes ``report.html`` into a run's folder.

    Args:
        folder: ``runs/NAME``; ``trials.csv`` in it gives the front's background, if it is there.
        numbers: the content of ``result.json``.

    Returns:
        The page.
    """
    path = Path(folder) / "report.html"
    write_text(path, page(Path(folder), numbers))
    return path


def page(folder: Path, numbers: Numbers) -> str:
    """The text of ``report.html``; arguments as those of ``write_report``."""
    terms = list(numbers["front"][0]["values"]) if numbers["front"] else []
    front = plot_front(numbers, read_points(folder, terms))
    text: str = _template().render(
        n=numbers,
        words=words,
        patients=patient_words,
        choice=choice_words,
        models=_models(numbers),
        labels=_labels(numbers),
        groups=_groups(numbers),
        group_figures=_group_figures(numbers),
        readout=_readout(numbers),
        external=_external(numbers),
        terms=terms,
        front_figure=Markup(front.svg) if front else None,
    )
    return text


def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string((files(__package__) / "report.html").read_text("utf-8"))


def _models(numbers: Numbers) -> list[Row]:
    """Winner and baselines: one row each."""
    contrast = numbers["contrast"]
    return [
        {
            "name": name,
            "title": model["title"],
            "params": f"{model['trainable_params']:,}",
            "opponent": name == contrast["baseline"],
            "test": [model["test"].get(m) for m in words.metrics_shown(numbers)],
            "seeds": [model["seeds"]["test"].get(m) for m in words.metrics_shown(numbers)],
            "confirm": [model["confirm"].get(m) for m in words.metrics_shown(numbers)],
            "fresh_confirm": [
                model["seeds"]["confirm"].get(m) for m in words.metrics_shown(numbers)
            ],
            "behind": contrast["others"].get(name),
        }
        for name, model in words.models(numbers).items()
    ]


def _labels(numbers: Numbers) -> list[Row]:
    """Test AUROC by label, where there are several."""
    mine, theirs = numbers["best"], numbers["baselines"][numbers["contrast"]["baseline"]]
    names = list(numbers["thresholds"])
    return [
        {
            "name": name,
            "winner": mine["test"].get(f"auroc:{name}"),
            "opponent": theirs["test"].get(f"auroc:{name}"),
            "threshold": numbers["thresholds"][name],
        }
        for name in names
        if len(names) > 1
    ]


def _groups(numbers: Numbers) -> list[Row]:
    """One row a group and label, winner and declared baseline side by side."""
    opponent = numbers["contrast"]["baseline"]
    cells = {(r["model"], r["attribute"], r["group"], r["label"]): r for r in numbers["groups"]}
    return [
        {
            "name": words.group_name(row),
            "label": row["label"],
            "patients": f"{row['positives']:,} / {row['negatives']:,}",
            "counted": row["counted"],
            "winner": row,
            "opponent": cells[(opponent, row["attribute"], row["group"], row["label"])],
        }
        for row in numbers["groups"]
        if row["model"] == "winner"
    ]


def _group_figures(numbers: Numbers) -> list[Markup]:
    if not numbers["groups"]:
        return []
    found = (plot_groups(numbers, label) for label in numbers["thresholds"])
    return [Markup(f.svg) for f in found if f is not None]


def _readout(numbers: Numbers) -> Mapping[str, Any]:
    """Block x pool: out-of-fold AUROC of a linear probe inside train."""
    table = {tuple(key.split("|")): v for key, v in numbers["readout"]["table"].items()}
    pools = sorted({pool for _, pool in table}, key=("token", "avg", "token+avg").index)
    blocks = sorted({int(block) for block, _ in table})
    rows = [
        {"block": b, "values": [(pool, table.get((str(b), pool))) for pool in pools]}
        for b in blocks
    ]
    return {"pools": pools, "rows": rows}


def _external(numbers: Numbers) -> list[Row]:
    """Winner and declared baseline on data sets that took no part in anything."""
    opponent = numbers["baselines"][numbers["contrast"]["baseline"]]
    metrics = words.metrics_shown(numbers)
    return [
        {
            "name": split,
            "metric": metric,
            "patients": numbers["patients"][split],
            "winner": numbers["best"][split].get(metric),
            "opponent": opponent[split].get(metric),
        }
        for split in words.externals(numbers)
        for metric in metrics
    ]
