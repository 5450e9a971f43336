"""Settings: a file below the flags, checked, saved, compared."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from autopeft.errors import UserError
from autopeft.settings import FIRST_RUN, MAY_CHANGE, Settings, from_mapping, load

OTHER = {
    "fit": "crop", "sampler": "random", "inner": "holdout", "runner": "ray", "precision": "fp32",
    "budget": 60.0, "cache_gb": 2.0, "image_size": 112, "weights": "w", "data_root": "d",
    "patient_column": "p", "split_column": "s", "data_option": {"a": "b"}, "label_fraction": 0.1,
    "init_adapter": "runs/x/best", "init_mode": "naive", "seeds": 4,
}  # fmt: skip


def changed(name):
    """The default settings with one other value."""
    value = getattr(Settings(), name)
    if name in OTHER:
        value = OTHER[name]
    elif isinstance(value, bool):
        value = not value
    elif isinstance(value, (int, float)):
        value = value + (0.1 if name == "margin" else 1)
    else:
        value = (*value, "x") if isinstance(value, tuple) else value + "x"
    needed = {"init_adapter": "runs/x/best"} if name == "init_mode" else {}
    return replace(Settings(), **{**needed, name: value})


FIELDS = [f.name for f in dataclasses.fields(Settings)]


def test_a_mapping_becomes_settings_in_the_fields_own_types():
    got = from_mapping(
        {
            "batch-size": "16", "min_group": 10.0, "budget": 90, "label": "pneumonia",
            "group": ["sex", "age:60"], "data-option": {"uncertain": 1}, "quiet": True,
            "dataset": Path("a/b.csv"), "margin": "0.02", "image_size": None, "seed": 0,
        },
        "a.yaml",
    )  # fmt: skip
    assert got == Settings(
        batch_size=16, min_group=10, budget=90.0, label=("pneumonia",), group=("sex", "age:60"),
        data_option={"uncertain": "1"}, quiet=True, dataset="a/b.csv", margin=0.02,
    )  # fmt: skip
    assert type(got.min_group) is int


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trails": 3}, "unknown setting 'trails'.*\"trials\""),
        ({"trials": "many"}, "'many' is not a whole number"),
        ({"trials": 1.5}, "1.5 is not a whole number"),
        ({"trials": True}, "True is not a whole number"),
        ({"trials": [1]}, "not a whole number"),
        ({"trials": None}, "None is not a whole number"),
        ({"trials": float("inf")}, "inf is not a whole number"),
        ({"trials": float("nan")}, "nan is not a whole number"),
        ({"quiet": "yes"}, "'yes' is not true or false"),
        ({"margin": "x"}, "'x' is not a number"),
        ({"dataset": ["a"]}, "not a word"),
        ({"data_option": ["a"]}, "--data-option"),
        ({"trials": 0}, "--trials: 0 is too small.*at least 1"),
        ({"margin": float("nan")}, "--margin: nan is too small"),
        ({"budget": float("nan")}, "--budget: nan"),
        ({"margin": 2.0}, "--margin: 2 is too large.*nothing could fail"),
        ({"runs_dir": " "}, "--runs-dir: is empty"),
        ({"image_size": 4}, "--image-size: 4 is too small"),
        ({"sampler": "tpo"}, "--sampler: 'tpo'.*\"tpe\""),
        ({"precision": "fp8"}, "--precision.*auto, bf16, fp16, fp32"),
    ],
)
def test_wrong_values_are_named(values, words):
    with pytest.raises(UserError, match=words):
        from_mapping(values, "a.yaml")


def test_a_file_is_read_as_plain_values(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("trials: 16\ngroup: [sex, 'age:60']\n")
    assert load(file) == {"trials": 16, "group": ["sex", "age:60"]}
    for text, words in (
        ("- a\n", "holds no settings"),
        ("a: [", "valid YAML"),
        ("", "no settings"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words) as error:
            load(file)
        assert "\n" not in str(error.value)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        load(file)
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match="directory"):
        load(tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_saved_settings_are_read_back(name, tmp_path):
    settings = changed(name)
    assert getattr(settings, name) != getattr(Settings(), name)
    settings.save(tmp_path / "settings.yaml")
    assert from_mapping(load(tmp_path / "settings.yaml"), "") == settings
    assert set(yaml.safe_load((tmp_path / "settings.yaml").read_text())) == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_what_may_change_changes_no_digest_and_is_not_refused(name):
    settings = changed(name)
    assert (settings.digest() == Settings().digest()) == (name in MAY_CHANGE)
    if name in MAY_CHANGE:
        settings.check_same(Settings())
    else:
        with pytest.raises(UserError, match="other settings") as error:
            settings.check_same(Settings())
        old, new = getattr(Settings(), name), getattr(settings, name)
        assert f"--{name.replace('_', '-')} was {old!r}, now {new!r}" in str(error.value)


def test_every_changed_flag_is_listed():
    with pytest.raises(UserError) as error:
        replace(Settings(), epochs=3, seed=7, trials=99).check_same(Settings())
    assert "--epochs was 9, now 3; --seed was 0, now 7" in str(error.value)
    assert "trials" not in error.value.what


def test_the_digest_is_the_same_in_another_process():
    code = "from autopeft.settings import Settings; print(Settings(group=('sex',)).digest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {Settings(group=("sex",)).digest()}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"dataset": "x/nih/labels.csv", "objective": "fairness"}, "nih-fairness-"),
        ({"dataset": "x/cohort.csv"}, "cohort-auroc-"),
        ({"objective": "mine/aim.py"}, "phantom-aim-"),
    ],
)
def test_the_run_s_name_says_data_and_aim(values, name):
    settings = Settings(**values)
    assert settings.run_name == name + settings.digest()
    assert settings.run_dir == Path("runs") / settings.run_name
    assert replace(settings, name="mine", runs_dir="r").run_dir == Path("r/mine")


def test_seeds_screen_and_finish():
    assert (Settings().screen_seeds, Settings().final_seeds) == (3, 5)
    assert (Settings(seeds=4).screen_seeds, Settings(seeds=4).final_seeds) == (4, 4)
    assert FIRST_RUN["seeds"] == 2
