"""Commands on finished runs: parse and print, decide nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli_flags import Json, Runs, pairs

runs_app = typer.Typer()  # without a name: its commands stand beside those of `autopeft`


@runs_app.command()
def show(name: str, runs_dir: Runs = "runs", as_json: Json = False) -> None:
    """Show a finished run again."""
    from autopeft.result import load_result
    from autopeft.summary import print_summary

    result = load_result(Path(runs_dir) / name)
    if as_json:
        print(json.dumps(result.numbers, indent=1))
    else:
        print_summary(result)


@runs_app.command()
def verify(name: str, runs_dir: Runs = "runs", as_json: Json = False) -> None:
    """Recompute a finished run's numbers from its stored predictions; exit 1 where one differs."""
    from autopeft.verification import verify as look_again

    found = look_again(name, runs_dir, quiet=as_json)
    if as_json:
        lines = [vars(check) for check in found.checks]
        print(json.dumps({"ok": found.ok, "checks": lines}, indent=1))
    else:
        print("\n".join([*(check.line for check in found.checks), found.summary]))
    if not found.ok:
        raise SystemExit(1)


@runs_app.command()
def choose(
    name: str,
    objective: Annotated[str, typer.Option(help="Objective, by name or path.")],
    group: Annotated[
        list[str] | None, typer.Option(help="Of the run's groups those to compare; repeatable.")
    ] = None,
    runs_dir: Runs = "runs",
    as_json: Json = False,
) -> None:
    """What another objective would have picked, from stored predictions; post hoc."""
    from autopeft.choices import choose as pick

    found = pick(name, objective, group or (), runs_dir)
    print(json.dumps(found.numbers, indent=1) if as_json else "\n".join(found.lines))


@runs_app.command()
def evaluate(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, e.g. runs/NAME/best.")],
    dataset: Annotated[str, typer.Option(help="Data set's name or a CSV file.")],
    data_root: Annotated[str | None, typer.Option(help="Folder of the images.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label column; repeatable.")] = None,
    label_map: Annotated[
        list[str] | None, typer.Option(help="CLASS=LABEL where the names differ; repeatable.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Patient group; default those of the adapter's run.")
    ] = None,
    patient_column: Annotated[str | None, typer.Option(help="Column of the patient id.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column of the data's splits.")] = None,
    split: Annotated[str, typer.Option(help="One of the data's own splits, or all.")] = "all",
    data_option: Annotated[
        list[str] | None, typer.Option(help="key=value for the data set; repeatable.")
    ] = None,
    min_group: Annotated[
        int, typer.Option(help="Patients with and without a finding that a group needs.")
    ] = 10,
    leave_out_trained: Annotated[
        bool, typer.Option("--leave-out-trained", help="Leave out patients it was trained on.")
    ] = False,
    weights: Annotated[str | None, typer.Option(help="Weights file of the backbone.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a forward pass.")] = 64,
    name: Annotated[str, typer.Option(help="The evaluation's name.")] = "",
    out: Annotated[str, typer.Option(help="Folder of all evaluations.")] = "evaluations",
    runs_dir: Runs = "runs",
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Judge a saved adapter on other patients: external validation; nothing is chosen."""
    from autopeft.external import evaluate as judge

    found = judge(
        adapter, dataset, data_root=data_root, label=label or (), group=group or (),
        label_map=pairs(label_map, "--label-map"), patient_column=patient_column,
        split_column=split_column, split=split,
        data_option=pairs(data_option, "--data-option") or None, min_group=min_group,
        leave_out_trained=leave_out_trained, weights=weights, batch_size=batch_size, name=name,
        out=out, runs_dir=runs_dir, offline=offline, quiet=quiet,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.numbers, indent=1))
    else:
        sys.stdout.write(found.report.replace("&lt;", "<"))  # escaped for Markdown alone
        print(f"\n{found.folder}: evaluation.json, report.md, predictions.csv (names patients)")
