"""The command line: each wrong flag is one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft import cli, cli_flags
from autopeft import settings as settings_file
from autopeft.errors import RunError, UserError
from autopeft.settings import Settings
from autopeft.version import __version__

REPO = Path(__file__).parents[1]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs ``autopeft ARGS`` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["autopeft", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def asked(monkeypatch):
    """The settings that ``autopeft search`` would run; nothing is run."""
    from autopeft import driver, summary

    seen = []
    result = type("Result", (), {"numbers": {"verdict": "x"}})
    monkeypatch.setattr(driver, "run", lambda settings: seen.append(settings) or result)
    monkeypatch.setattr(summary, "print_summary", lambda result: print("SUMMARY"))
    return seen


def one_line(err):
    assert err.startswith("autopeft: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--objectve", "auroc"], "--objectve"),
        (["--trials", "many"], "Try `autopeft search --help`."),
        (["--trials"], "'--trials' requires an argument."),
        (["--trials", "0"], "--trials: 0 is too small"),
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "1"], "--batch-size"),
        (["--margin", "nan"], "--margin"),
        (["--budget", "soon"], "--budget: 'soon' is no time"),
        (["--budget", "nan"], "--budget"),
        (["--workers", "two"], "--workers: 'two' is no number"),
        (["--workers", "0"], "--workers"),
        (["--data-option", "x"], "--data-option: 'x' is no key=value"),
        (["--fit", "stretch"], "--fit: 'stretch'"),
        (["--sampler", "tpee"], 'Did you mean "tpe"'),
        (["--runner", "dask"], "--runner: 'dask'"),
        (["--precision", "fp61"], "--precision"),
        (["--inner", "cv"], "--inner"),
        (["--config", "gone.yaml"], "gone.yaml: cannot be read"),
        (["--objective", "auroq"], 'Did you mean "auroc"'),
        (["--space", "quikc"], 'Did you mean "quick"'),
        (["--backbone", "vit_smal_patch14_dinov2"], "unknown backbone"),
        (["--baseline", "lora_r9"], "unknown baseline 'lora_r9'"),
        (["--dataset", "gone.csv"], "gone.csv"),
        (["--weights", "gone.safetensors"], "gone.safetensors"),
        (["stray"], "stray"),
    ],
    ids=" ".join,
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(call, tmp_path, args, words):
    code, out, err = call("search", "--offline", *args)
    assert words in one_line(err)
    assert (code, out) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_unknown_commands_and_settings_are_named(call, tmp_path):
    code, _, err = call("serach")
    assert code == 2
    assert "serach" in one_line(err)
    (tmp_path / "a.yaml").write_text("trails: 3\n")
    code, _, err = call("search", "--config", "a.yaml")
    assert code == 2
    assert "a.yaml: unknown setting 'trails'. Did you mean \"trials\"?" in one_line(err)
    code, _, err = call("show", "gone")
    assert code == 2
    assert "gone: is no run" in one_line(err)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("is empty", "x.csv", "Fill it."), 2, "x.csv: is empty. Fill it."),
        (RunError("no trial could be trained"), 1, "no trial could be trained"),
        (OSError(28, "No space left on device", "/x/y"), 1, "the disk is full (/x/y)"),
        (KeyError("a\nb"), 1, "KeyError"),
        (KeyboardInterrupt(), 130, "The same command goes on"),
    ],
)
def test_failures_have_their_exit_codes(call, monkeypatch, error, code, words):
    from autopeft import driver

    def fail(settings):
        raise error

    monkeypatch.setattr(driver, "run", fail)
    got, out, err = call("search")
    assert (got, out) == (code, "")
    assert words in one_line(err)
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            call("search", "--debug")


# ---- flags and settings -------------------------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_the_defaults(call, asked, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "dataset: a.csv\ntrials: 7\nbatch-size: 16\nlabel: [x, y]\nmin_group: 20\n"
    )
    args = "--config s.yaml --trials 9 --batch-size 8 --group sex --group age:60 --workers auto"
    code, out, _ = call("search", *args.split(), "--budget", "1.5h", "--data-option", "a = b=c")
    assert (code, out) == (0, "SUMMARY\n")
    assert asked == [
        Settings(
            dataset="a.csv", trials=9, batch_size=8, label=("x", "y"), min_group=20,
            group=("sex", "age:60"), budget=5400.0, data_option={"a": "b=c"},
        )
    ]  # fmt: skip


def test_no_arguments_are_the_small_first_run(call, asked):
    from autopeft.settings import FIRST_RUN

    assert call("search")[0] == 0
    assert call("search", "--trials", "3")[0] == 0
    assert call("search", "--dataset", "a.csv")[0] == 0
    first, three, own = asked
    assert first == Settings(**FIRST_RUN)
    assert three == Settings(**{**FIRST_RUN, "trials": 3})
    assert own == Settings(dataset="a.csv")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("30m", 1800), ("8h", 28800), ("1d", 86400)]
)
def test_times(call, asked, text, seconds):
    call("search", "--budget", text)
    assert asked[0].budget == seconds


def test_json_is_all_that_stdout_gets(call, asked):
    code, out, _ = call("search", "--json", "--quiet")
    assert (code, json.loads(out)) == (0, {"verdict": "x"})


def test_every_setting_has_a_flag_with_the_same_default():
    fields = {f.name: f.default for f in settings_file.fields(Settings)}
    flags = {
        cli_flags.FIELD.get(name, name): p.default
        for name, p in inspect.signature(cli_flags.search_flags).parameters.items()
        if name != "config"
    }
    assert set(flags) == set(fields)
    for name, default in fields.items():
        if name == "workers":
            assert flags[name] == "auto"  # 0
        elif isinstance(default, tuple) or default is None:
            assert flags[name] is None
        else:
            assert flags[name] == default


@pytest.mark.parametrize("words", [["plan"], ["search", "--dry-run"]], ids=" ".join)
def test_both_spellings_of_a_plan_look_ahead_and_run_nothing(call, asked, monkeypatch, words):
    from autopeft import planning

    looked_ahead = []
    found = type("Plan", (), {"numbers": {"run": "x"}, "lines": ["A", "B\x1b[2J"]})
    monkeypatch.setattr(
        planning, "make_plan", lambda settings, timing: looked_ahead.append(settings) or found
    )
    code, out, _ = call(*words, "--dataset", "a.csv", "--group", "sex", "--seeds", "2")
    assert (code, out) == (0, "A\nB?[2J\n")
    assert looked_ahead == [Settings(dataset="a.csv", group=("sex",), seeds=2)]
    assert json.loads(call(*words, "--json")[1]) == {"run": "x"}
    assert asked == []


@pytest.mark.parametrize("words", [["plan"], ["search", "--dry-run"]], ids=" ".join)
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dataset", "gone.csv"], "gone.csv"),
        (["--space", "quikc"], 'Did you mean "quick"'),
        (["--trials", "0"], "--trials: 0 is too small"),
        (["--workers", "two"], "--workers: 'two' is no number"),
        (["--objective", "auroq"], 'Did you mean "auroc"'),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_plan_refuses_what_a_search_refuses(call, tmp_path, words, args, said):
    code, out, err = call(*words, "--offline", *args)
    assert said in one_line(err)
    assert (code, out) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_the_seconds_of_a_timing_are_no_less_than_none(call):
    code, _, err = call("plan", "--timing", "-1")
    assert code == 2
    assert "--timing" in one_line(err)


# ---- what there is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("datasets", "phantom"), ("spaces", "quick"), ("objectives", "fairness"),
        ("methods", "lora"), ("backbones", "autopeft_vit_nano"),
    ],
)  # fmt: skip
def test_lists(call, what, name):
    code, out, _ = call(what)
    assert code == 0
    assert name in out
    rows = json.loads(call(what, "--json")[1])
    assert name in [row["name"] for row in rows]
    assert all(all(str(v) for v in row.values()) for row in rows)


def test_copy_makes_a_file_once(call, tmp_path):
    code, out, _ = call("copy", "objective", "fairness", "mine.py")
    assert (code, out) == (0, "mine.py\n")
    assert (tmp_path / "mine.py").read_text() == (REPO / "objectives" / "fairness.py").read_text()
    code, _, err = call("copy", "objective", "fairness", "mine.py")
    assert code == 2
    assert "exists already" in one_line(err)
    (tmp_path / "folder").mkdir()
    assert call("copy", "space", "quick", "folder")[0] == 0
    assert (tmp_path / "folder" / "quick.yaml").exists()
    assert call("copy", "space", "quikc", "x.yaml")[0] == 2


def test_help_and_version(call):
    assert call("--version")[:2] == (0, f"autopeft {__version__}\n")
    for args in (["--help"], ["search", "--help"], ["copy", "--help"]):
        code, out, err = call(*args)
        assert (code, err) == (0, "")
        assert "--help" in out
    code, out, err = call()
    assert (code, err) == (2, "")
    assert "Usage: autopeft" in out


# ---- start-up -----------------------------------------------------------------------------------


def heavy_after(code):
    """Which heavy libraries a fresh process has loaded after some code."""
    heavy = ("torch", "ray", "optuna", "timm", "peft", "pandas", "sklearn", "fairlearn")
    code = f"import sys\n{code}\nprint('|', *[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True
    )
    return done.stdout.rpartition("|")[2].split()


def test_import_autopeft_is_light():
    assert heavy_after("import autopeft; autopeft.Settings, autopeft.UserError") == []


@pytest.mark.parametrize("args", ["--help", "search --help", "--version", "search --trials x"])
def test_the_command_line_itself_is_light(args):
    code = f"""
sys.argv = ["autopeft", *{args.split()!r}]
from autopeft.cli import main
try: main()
except SystemExit: pass
"""
    assert heavy_after(code) == []


def test_public_names():
    import autopeft

    for name in autopeft.__all__:
        assert getattr(autopeft, name) is not None
    with pytest.raises(AttributeError, match="serach"):
        _ = autopeft.serach


def test_python_m_autopeft_cli():
    done = subprocess.run(
        [sys.executable, "-m", "autopeft.cli", "search", "--trials", "x"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr)
