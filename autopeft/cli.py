"""The command line: parse and print, decide nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autopeft import settings as settings_file
from autopeft.backbones.catalog import OWN
from autopeft.errors import RunError, UserError
from autopeft.version import __version__

app = typer.Typer(
    name="autopeft",
    help="Search for the best parameter-efficient fine-tuning of a frozen medical-imaging "
    "backbone. Research use; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
copy_app = typer.Typer(help="Copy a built-in to edit it.", no_args_is_help=True)
app.add_typer(copy_app, name="copy")
methods_app = typer.Typer(help="List the methods, or show one.", invoke_without_command=True)
app.add_typer(methods_app, name="methods")

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
OnBackbone = Annotated[str, typer.Option("--backbone", help="timm name; for the sizes.")]
Runs = Annotated[str, typer.Option("--runs-dir", help="Folder of all runs.")]


def main() -> None:
    """Entry point: exit code 0 done, 1 failed, 2 bad input; one clear line, no traceback."""
    debug = "--debug" in sys.argv
    try:
        # After Ctrl-C some versions of Typer give 130 back, others raise Abort.
        if app(standalone_mode=False, prog_name="autopeft") == 130:
            raise typer.Abort
    except UserError as error:
        _end(error, f"autopeft: {error}", 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        _end(None, "autopeft: stopped. The same command goes on where it stopped.", 130, False)
    except RunError as error:
        _end(error, f"autopeft: {error}", 1, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: unknown option, missing value ...
            where = getattr(error, "ctx", None)
            hint = f" Try `{where.command_path} --help`." if where else ""
            said = error.format_message().rstrip(".")
            if not said:  # no arguments: the help is shown
                raise SystemExit(2) from None
            _end(None, f"autopeft: {said}.{hint}", 2, debug)
        if isinstance(error, OSError) and error.errno == 28:
            _end(error, f"autopeft: the disk is full ({error.filename or ''})", 1, debug)
        _end(error, f"autopeft: {type(error).__name__}: {_one_line(error)}", 1, debug)


def _end(error: BaseException | None, line: str, code: int, debug: bool) -> None:
    if debug and error is not None:
        raise error
    print(line, file=sys.stderr)
    raise SystemExit(code)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _version(shown: bool) -> None:
    if shown:
        print(f"autopeft {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    """See `autopeft search --help`."""


@app.command()
def search(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win.")] = None,
    dataset: Annotated[str, typer.Option(help="Data set's name or a CSV file.")] = "phantom",
    data_root: Annotated[str | None, typer.Option(help="Folder of the images.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label column; repeatable.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Patient group: sex, age:60 ...; repeatable.")
    ] = None,
    patient_column: Annotated[str | None, typer.Option(help="Column of the patient id.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column with given splits.")] = None,
    data_option: Annotated[
        list[str] | None, typer.Option(help="key=value for the data set; repeatable.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="timm name.")] = "autopeft_vit_nano",
    weights: Annotated[str | None, typer.Option(help="Weights file of the backbone.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels.")] = None,
    fit: Annotated[str, typer.Option(help="pad, crop or squash images to a square.")] = "pad",
    space: Annotated[str, typer.Option(help="Search space, by name or path.")] = "default",
    objective: Annotated[str, typer.Option(help="Objective, by name or path.")] = "auroc",
    trials: Annotated[int, typer.Option(help="Candidates to try.")] = 32,
    budget: Annotated[str | None, typer.Option(help="Wall time, e.g. 30m or 8h.")] = None,
    epochs: Annotated[int, typer.Option(help="Length of a full training.")] = 9,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    sampler: Annotated[str, typer.Option(help="tpe, random, nsga2 or gp.")] = "tpe",
    inner: Annotated[str, typer.Option(help="auto or holdout.")] = "auto",
    min_group: Annotated[
        int, typer.Option(help="Positive and negative patients that a group needs.")
    ] = 50,
    runner: Annotated[str, typer.Option(help="serial or ray.")] = "serial",
    workers: Annotated[str, typer.Option(help="Number of workers, or auto.")] = "auto",
    cpus_per_worker: Annotated[int, typer.Option(help="Threads of a worker; 0 = share.")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(help="GPU share of a worker.")] = 0.0,
    address: Annotated[
        str, typer.Option(help="Existing Ray cluster: auto or host:port; implies --runner ray.")
    ] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    cache_gb: Annotated[
        float | None, typer.Option(help="Disk for frozen states; default a quarter of the free.")
    ] = None,
    views: Annotated[int, typer.Option(help="Augmented views; 1 = plain, 0 = always new.")] = 4,
    confirm: Annotated[int, typer.Option(help="Finalists.")] = 3,
    seeds: Annotated[int, typer.Option(help="Fresh seeds of a finalist.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of everything but the splits.")] = 0,
    split_seed: Annotated[int, typer.Option(help="Seed of the splits.")] = 0,
    label_fraction: Annotated[
        float, typer.Option(help="Train on this share of the train patients; nested.")
    ] = 1.0,
    init_adapter: Annotated[
        str | None, typer.Option(help="Folder of an earlier adapter to start from.")
    ] = None,
    init_mode: Annotated[str, typer.Option(help="merged, naive or orthogonal.")] = "merged",
    margin: Annotated[float, typer.Option(help="Non-inferiority margin.")] = 0.01,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Baseline to train; default all; repeatable.")
    ] = None,
    name: Annotated[str, typer.Option(help="The run's name.")] = "",
    runs_dir: Runs = "runs",
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Search, confirm, test once. Without --dataset: a synthetic task, offline, in minutes.

    The same command on an existing run goes on where it stopped.
    """
    given = _given(context)
    values = settings_file.load(config) if config else {}
    values |= given
    settings = settings_file.from_mapping(
        settings_file.complete(values), str(config or "autopeft search")
    )
    from autopeft.driver import run

    result = run(settings)
    if settings.json:
        print(json.dumps(result.numbers, indent=1))
    else:
        from autopeft.summary import print_summary

        print_summary(result)


# Flag of the command -> field of Settings, where the two are spelled differently.
_FIELD = {"as_json": "json", "baseline": "baselines"}


def _given(context: typer.Context) -> dict[str, Any]:
    """The flags that stand on the command line, as settings; defaults are left to Settings."""
    values: dict[str, Any] = {}
    for key, value in context.params.items():
        source = context.get_parameter_source(key)
        if key == "config" or source is None or source.name == "DEFAULT":
            continue
        values[_FIELD.get(key, key)] = value
    if "workers" in values:
        values["workers"] = _workers(values["workers"])
    if "data_option" in values:
        values["data_option"] = dict(_pair(text) for text in values["data_option"])
    return values


def _workers(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{text!r} is no number of workers", "--workers", "Write 2, or auto.")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"{text!r} is no key=value", "--data-option")
    return key.strip(), value.strip()


# ---- what there is --------------------------------------------------------------------------


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the data sets."""
    from autopeft.data import DATASETS

    _table([{"name": n, "what": d.what} for n, d in DATASETS.items()], as_json)


@app.command()
def spaces(as_json: Json = False) -> None:
    """List the search spaces."""
    _plugins("search_spaces", as_json)


@app.command()
def objectives(as_json: Json = False) -> None:
    """List the objectives."""
    _plugins("objectives", as_json)


@methods_app.callback()
def methods(context: typer.Context, backbone: OnBackbone = OWN, as_json: Json = False) -> None:
    """List the methods: size on a backbone, whether mergeable, cacheable, for CNNs."""
    if context.invoked_subcommand is not None:
        return
    from autopeft import catalog

    found = catalog.lines(catalog.facts_of(backbone), catalog.reference_cnns())
    _table([dataclasses.asdict(line) for line in found], as_json)


@methods_app.command("show")
def show_method(name: str, backbone: OnBackbone = OWN, as_json: Json = False) -> None:
    """Show one method: formula, options, learning rates, size, what it refuses."""
    from autopeft import catalog

    shown = catalog.description(name, catalog.facts_of(backbone), catalog.reference_cnns())
    print(json.dumps(shown, indent=1) if as_json else catalog.text(shown))


@app.command()
def backbones(as_json: Json = False) -> None:
    """List backbones that autopeft is tested with; any timm ViT or CNN of these families works."""
    from autopeft.backbones.catalog import list_backbones

    _table([dataclasses.asdict(b) for b in list_backbones()], as_json)


@app.command()
def show(name: str, runs_dir: Runs = "runs", as_json: Json = False) -> None:
    """Show a finished run again."""
    from autopeft.result import load_result
    from autopeft.summary import print_summary

    result = load_result(Path(runs_dir) / name)
    if as_json:
        print(json.dumps(result.numbers, indent=1))
    else:
        print_summary(result)


@app.command()
def doctor(runs_dir: Runs = "runs", as_json: Json = False) -> None:
    """Look at this machine: versions, memory, device, number format, and what to mend."""
    from autopeft.doctor import examine

    _table([dataclasses.asdict(line) for line in examine(Path(runs_dir))], as_json)


@copy_app.command("space")
def copy_space(name: str, dest: Path) -> None:
    """Copy a search space to a file of yours."""
    _copy("search_spaces", name, dest)


@copy_app.command("objective")
def copy_objective(name: str, dest: Path) -> None:
    """Copy an objective to a file of yours."""
    _copy("objectives", name, dest)


def _copy(kind: Any, name: str, dest: Path) -> None:
    from autopeft import plugins
    from autopeft.files import write_text

    plugin = plugins.find(kind, name)
    target = dest / plugin.path.name if dest.is_dir() else dest
    if target.exists():
        raise UserError("exists already", str(target), "Name another file.")
    write_text(target, plugin.text)
    print(target)


def _plugins(kind: Any, as_json: bool) -> None:
    from autopeft import plugins

    found = [plugins.find(kind, name) for name in plugins.names(kind)]
    _table([{"name": p.name, "what": _first_words(p.text)} for p in found], as_json)


def _first_words(text: str) -> str:
    """First prose line of a plug-in file."""
    for line in text.splitlines():
        words = line.strip().lstrip("#").strip().strip('"').strip()
        if words and not words.startswith("autopeft search"):
            return words
    return ""


def _table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*(rows[0] if rows else ()), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(width=None if os.isatty(1) else 160).print(table)


def _cell(value: Any) -> str:
    """A value for people."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


if __name__ == "__main__":
    main()
