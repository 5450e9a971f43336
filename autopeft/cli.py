"""The command line: parse and print, decide nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autopeft.backbones.catalog import OWN
from autopeft.cli_flags import Json, OnBackbone, Runs, settings_of, with_search_flags
from autopeft.cli_print import table
from autopeft.cli_runs import runs_app
from autopeft.errors import RunError, UserError
from autopeft.settings import Settings
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
app.add_typer(runs_app)


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


Timing = Annotated[
    float, typer.Option(min=0, help="Seconds of timing this machine; 0 = no estimate of time.")
]


@app.command()
@with_search_flags
def search(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; the same as autopeft plan.")
    ] = False,
) -> None:
    """Search, confirm, test once. Without --dataset: a synthetic task, offline, in minutes.

    The same command on an existing run goes on where it stopped.
    """
    settings = settings_of(context)
    if dry_run:
        _look_ahead(settings)
        return
    from autopeft.driver import run

    result = run(settings)
    if settings.json:
        print(json.dumps(result.numbers, indent=1))
    else:
        from autopeft.summary import print_summary

        print_summary(result)


@app.command()
@with_search_flags
def plan(context: typer.Context, timing: Timing = 30.0) -> None:
    """Say what a search would do, on whom, how long, and what it could show. Trains nothing.

    Takes the flags of `autopeft search`.
    """
    _look_ahead(settings_of(context), timing)


def _look_ahead(settings: Settings, timing: float = 30.0) -> None:
    from autopeft.planning import make_plan
    from autopeft.words import printable

    found = make_plan(settings, timing)
    if settings.json:
        print(json.dumps(found.numbers, indent=1))
    else:
        print("\n".join(map(printable, found.lines)))


# ---- what there is --------------------------------------------------------------------------


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the data sets."""
    from autopeft.data import DATASETS

    table([{"name": n, "what": d.what} for n, d in DATASETS.items()], as_json)


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
    table([dataclasses.asdict(line) for line in found], as_json)


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

    table([dataclasses.asdict(b) for b in list_backbones()], as_json)


@app.command()
def doctor(runs_dir: Runs = "runs", as_json: Json = False) -> None:
    """Look at this machine: versions, memory, device, number format, and what to mend."""
    from autopeft.doctor import examine

    table([dataclasses.asdict(line) for line in examine(Path(runs_dir))], as_json)


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
    table([{"name": p.name, "what": _first_words(p.text)} for p in found], as_json)


def _first_words(text: str) -> str:
    """First prose line of a plug-in file."""
    for line in text.splitlines():
        words = line.strip().lstrip("#").strip().strip('"').strip()
        if words and not words.startswith("autopeft search"):
            return words
    return ""


if __name__ == "__main__":
    main()
