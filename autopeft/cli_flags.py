"""What is typed: the flags of `autopeft search` and of every command that takes the same."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from autopeft import settings as settings_file
from autopeft.errors import UserError
from autopeft.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
OnBackbone = Annotated[str, typer.Option("--backbone", help="timm name; for the sizes.")]
Runs = Annotated[str, typer.Option("--runs-dir", help="Folder of all runs.")]


def search_flags(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win.")] = None,
    dataset: Annotated[
        str, typer.Option(help="Data set's name or a CSV file; phantom has short settings.")
    ] = "phantom",
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
    inner: Annotated[str, typer.Option(help="auto, holdout or cv5 (folds).")] = "auto",
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
    seeds: Annotated[
        int | None, typer.Option(help="Fresh seeds of finalists and baselines; default 3, then 5.")
    ] = None,
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
    """One flag for each field of ``Settings``; ``with_search_flags`` gives them to a command."""


def with_search_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the flags of a search to a command, which reads them with ``settings_of``.

    Args:
        command: takes ``context`` first; its own flags follow those of the search.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    shared = list(inspect.signature(search_flags, eval_str=True).parameters.values())
    names = {p.name for p in own}

    @functools.wraps(command)
    def called(**given: Any) -> None:
        command(**{name: value for name, value in given.items() if name in names})

    every = [own[0], *shared, *own[1:]]
    called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in every}
    return called


# Flag of the command -> field of Settings, where the two are spelled differently.
FIELD = {"as_json": "json", "baseline": "baselines"}


def settings_of(context: typer.Context) -> Settings:
    """The settings that a command line asks for: defaults, then the file, then the flags."""
    config: Path | None = context.params["config"]
    values = settings_file.load(config) if config else {}
    values |= _given(context)
    where = str(config or context.command_path)
    return settings_file.from_mapping(settings_file.complete(values), where)


def _given(context: typer.Context) -> dict[str, Any]:
    """The flags that stand on the command line, as settings; defaults are left to Settings."""
    known = set(inspect.signature(search_flags).parameters) - {"config"}
    values: dict[str, Any] = {}
    for key, value in context.params.items():
        source = context.get_parameter_source(key)
        if key not in known or source is None or source.name == "DEFAULT":
            continue
        values[FIELD.get(key, key)] = value
    if "workers" in values:
        values["workers"] = _workers(values["workers"])
    if "data_option" in values:
        values["data_option"] = pairs(values["data_option"], "--data-option")
    return values


def _workers(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{text!r} is no number of workers", "--workers", "Write 2, or auto.")
    return int(text)


def pairs(given: Iterable[str] | None, flag: str) -> dict[str, str]:
    """``key=value`` flags as a mapping.

    Raises:
        UserError: one of them has no ``=``.
    """
    found = {}
    for text in given or ():
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"{text!r} is no key=value", flag)
        found[key.strip()] = value.strip()
    return found
