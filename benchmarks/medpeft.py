"""MED-PEFT's table: LoRA against full fine-tuning, 2 backbones x 3 data sets x 3 label fractions.

    python benchmarks/medpeft.py                      # what is there, what is missing
    python benchmarks/medpeft.py --nih NIH --chexpert CheXpert-v1.0-small --rsna rsna.csv \\
        --backbone vit_base_patch16_224:mrm.safetensors \\
        --backbone vit_base_patch16_224.mae:cxr_mae.safetensors

"Less could be better" (Lian et al., MIDL 2024, arXiv:2401.12215). Each row is one run of
``autopeft search --space medpeft --label-fraction F``; a run that is finished is not run again,
one that was stopped goes on. What differs from the paper, and why:

- fractions are nested, by patient and stratified; the paper's lists are by image and not nested;
- rank and learning rate are chosen on validation patients, confirmed with fresh seeds on others,
  and the test patients are looked at once; the paper chose by hand, on one seed;
- full fine-tuning is the baseline ``full`` (AdamW, one learning rate for all), not tuned;
- a run tests its winner and its baselines. Where the linear probe wins, no LoRA is tested, and
  the row says so. So each row also has LoRA and full fine-tuning on the confirm patients, both as
  means over the fresh seeds: that LoRA is the search's own pick, chosen on other patients;
- NIH has its official test list where it fits; CheXpert's official sets are external checks.

``--print`` shows the commands and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

FRACTIONS = (0.01, 0.1, 1.0)
BASELINES = ("linear_probe", "lora_r8", "full")
HEAD = (
    "backbone", "data", "labels", "LoRA q, v: test AUROC", "full: test AUROC", "difference",
    "trained", "LoRA - full on confirm, LoRA chosen on search",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One of the three data sets.

    Attributes:
        name: its name in the table.
        flag: the option that gives it.
        missing: what to do without it: where it is, under which terms.
    """

    name: str
    flag: str
    missing: str


SOURCES = (
    Source(
        "NIH",
        "--nih",
        "NIH ChestX-ray14 from the NIH Clinical Center's download page; no restriction on use, "
        "cite Wang et al., CVPR 2017. Give the folder of Data_Entry_2017_v2020.csv.",
    ),
    Source(
        "CheXpert",
        "--chexpert",
        "CheXpert-v1.0(-small) from Stanford AIMI, after registration; their research-use "
        "agreement forbids to pass it on. Give the folder of train.csv.",
    ),
    Source(
        "RSNA",
        "--rsna",
        "RSNA Pneumonia Detection Challenge (stage 2) from Kaggle, under the challenge's rules "
        "(non-commercial research). Give a CSV with path, patient and pneumonia, one row an "
        "image: Target is its largest over an image's boxes, and NIH's patient id, from the "
        "challenge's mapping file, keeps patients together.",
    ),
)
BACKBONES = (  # of the paper, both ViT-B/16 pretrained on chest X-rays
    ("MRM", "vit_base_patch16_224", "Zhou et al., ICLR 2023"),
    ("CXR-MAE", "vit_base_patch16_224", "Xiao et al., WACV 2023"),
)


@dataclass(frozen=True)
class Row:
    """One task of the 18.

    Attributes:
        backbone: as given, or the paper's name where none was given.
        source: the data set.
        fraction: share of the train patients.
        command: what runs it; None: something is missing.
    """

    backbone: str
    source: Source
    fraction: float
    command: tuple[str, ...] | None


def rows(options: argparse.Namespace) -> list[Row]:
    """The rows of the table: two backbones at least, three data sets, three fractions."""
    given: list[tuple[str, str | None]] = [(b, b) for b in options.backbone]
    given += [(name, None) for name, _, _ in BACKBONES[len(given) :]]
    return [
        Row(title, source, fraction, command(options, backbone, source, fraction))
        for title, backbone in given
        for source in SOURCES
        for fraction in FRACTIONS
    ]


def command(
    options: argparse.Namespace, backbone: str | None, source: Source, fraction: float
) -> tuple[str, ...] | None:
    """``autopeft search`` for one row."""
    place = getattr(options, source.name.lower())
    if backbone is None or place is None:
        return None
    name, _, weights = backbone.partition(":")
    words = ["search", "--space", "medpeft", "--label-fraction", f"{fraction:g}"]
    if source.name == "RSNA":
        words += ["--dataset", place, "--label", options.rsna_label]
    else:
        words += ["--dataset", source.name.lower(), "--data-root", place]
    if source.name == "CheXpert":
        words += ["--data-option", "view=all"]  # its lists have lateral views too
    words += ["--backbone", name, *(["--weights", weights] if weights else [])]
    words += ["--trials", str(options.trials), "--epochs", str(options.epochs)]
    words += ["--batch-size", str(options.batch_size), "--runs-dir", options.runs_dir]
    words += [word for baseline in BASELINES for word in ("--baseline", baseline)]
    return (*words, *shlex.split(options.more))


def run(words: Sequence[str]) -> dict[str, Any] | str:
    """The numbers of a finished run, or in one line why there are none."""
    full = [sys.executable, "-m", "autopeft.cli", *words, "--json"]
    done = subprocess.run(full, capture_output=True, text=True)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it failed"])[-1]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def cells(numbers: dict[str, Any], folder: Path) -> list[str]:
    """What a finished run says, in the order of ``HEAD``.

    Args:
        numbers: its ``result.json``.
        folder: the run's folder.
    """
    best, full = numbers["best"], numbers["baselines"]["full"]
    lora, other = "not tested: the linear probe won, " + _test(best), _test(full)
    difference, share = "", ""
    if best["config"]["strata"]:
        lora = f"{_test(best)}, {_recipe(best['config'])}"
        difference = f"{_auroc(best) - _auroc(full):+.3f}"
        share = f"{100 * best['trainable_params'] / full['trainable_params']:.2f} %"
    confirm, value, mean = "undefined", lora_on_confirm(numbers), full_on_confirm(folder)
    if value is not None and mean is not None:
        recipe = _recipe(_first_lora(numbers)["config"])
        confirm = f"{value:.3f} - {mean:.3f} = {value - mean:+.3f}, {recipe}"
    return [lora, other, difference, share, confirm]


def lora_on_confirm(numbers: dict[str, Any]) -> float | None:
    """AUROC on confirm of the LoRA that the search picked, mean over fresh seeds."""
    value = _first_lora(numbers)["confirm"].get("auroc")
    return None if value is None else float(value)


def _first_lora(numbers: dict[str, Any]) -> dict[str, Any]:
    """The first finalist that is no probe: they stand in the order of the search's picks."""
    found: dict[str, Any] = next(f for f in numbers["finalists"] if f["config"]["strata"])
    return found


def full_on_confirm(folder: Path) -> float | None:
    """AUROC of full fine-tuning on confirm, mean over fresh seeds and labels."""
    table = pd.read_csv(folder / "predictions.csv")
    table = table[(table.model == "full") & (table.split == "confirm") & (table.repeat > 0)]
    values = [
        roc_auc_score(rows.target, rows.score)
        for _, rows in table.dropna(subset="target").groupby(["repeat", "label"])
        if rows.target.nunique() == 2
    ]
    return float(np.mean(values)) if values else None


def _recipe(config: dict[str, Any]) -> str:
    train = config["train"]
    return f"r = {config['strata'][0]['options']['r']}, {train['optimizer']} {train['lr']:.2g}"


def _auroc(model: dict[str, Any]) -> float:
    return float(model["test"]["auroc"]["value"])


def _test(model: dict[str, Any]) -> str:
    return _interval(model["test"]["auroc"])


def _interval(metric: dict[str, Any]) -> str:
    if metric["low"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def main() -> None:
    options = read_options()
    table, better, tested, measured = [], 0, 0, 0
    for row in rows(options):
        line = [row.backbone, row.source.name, f"{100 * row.fraction:g} %"]
        if row.command is None:
            table.append([*line, "not run: something is missing, see below", "", "", "", ""])
            continue
        if options.print:
            print(shlex.join(["autopeft", *row.command]))
        found = "not run: --print" if options.print else run(row.command)
        if isinstance(found, str):
            table.append([*line, found, "", "", "", ""])
            continue
        folder = Path(options.runs_dir) / found["run"]
        table.append([*line, *cells(found, folder)])
        measured += 1
        tested += bool(found["best"]["config"]["strata"])
        picked, full = lora_on_confirm(found), full_on_confirm(folder)
        better += picked is not None and full is not None and picked > full
    for cell in (HEAD, ["---"] * len(HEAD), *table):
        print(f"| {' | '.join(cell)} |")
    print(
        f"\n{measured} of {len(table)} rows measured; LoRA is higher on confirm in {better} of "
        f"them and was tested in {tested} (higher in 13 of 18 in the paper, on test; a difference "
        "within the intervals is none)."
    )
    for said in missing(options):
        print(said)


def missing(options: argparse.Namespace) -> list[str]:
    """What was not given, where it is, and under which terms."""
    lines = [
        f"Missing {source.flag} ({source.name}): {source.missing}"
        for source in SOURCES
        if getattr(options, source.name.lower()) is None
    ]
    for name, timm_name, paper in BACKBONES[len(options.backbone) :]:
        lines.append(
            f"Missing --backbone for {name} ({paper}): a ViT-B/16 whose weights its authors "
            f"publish beside their code, under their own licence; give {timm_name}:FILE. "
            "Any other timm backbone may stand in its row."
        )
    return lines


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nih", help="folder of NIH ChestX-ray14")
    parser.add_argument("--chexpert", help="folder of CheXpert")
    parser.add_argument("--rsna", help="CSV of the RSNA challenge's images")
    parser.add_argument("--rsna-label", default="pneumonia", help="its label column")
    parser.add_argument("--backbone", action="append", default=[], help="NAME[:WEIGHTS]")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=27, help="100 to 400 in the paper")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--runs-dir", default="runs/medpeft")
    parser.add_argument(
        "--more", default="", help='other flags of autopeft search, "--runner ray"'
    )
    parser.add_argument("--print", action="store_true", help="show the commands only")
    options = parser.parse_args()
    for source in SOURCES:
        place = getattr(options, source.name.lower())
        if place is not None and not Path(place).exists():
            parser.error(f"{source.flag} {place}: there is no such file or folder")
    return options


if __name__ == "__main__":
    main()
