"""A saved adapter on other patients: files, refusals, and numbers that others compute alike."""

from __future__ import annotations

import json
import stat

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

import autopeft
from autopeft.adapter import save
from autopeft.backbones.weights import load_backbone
from autopeft.errors import UserError
from autopeft.methods import build, canonical

SIZE = 28


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def pictures(folder, n=60, images=2, seed=0, stem="p", color=False):
    """A table of films whose brightness goes with the label."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(n):
        ill = int(rng.random() < 0.4)
        for k in range(images):
            path = f"images/{stem}{i:03}_{k}.png"
            pixels = rng.integers(0, 120, (40, 30)) + 60 * ill
            if color:
                pixels = np.stack([pixels] * 3, axis=2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
            sex, age = "MF"[i % 2], int(rng.integers(20, 90))
            records.append((path, f"{stem}{i:03}", ill, int(rng.random() < 0.5), sex, age))
    columns = ["path", "patient", "ill", "edema", "sex", "age"]
    return pd.DataFrame(records, columns=columns)


@pytest.fixture(scope="module")
def network():
    return load_backbone("autopeft_vit_nano", None, SIZE, True)


def adapter(folder, network, classes=("ill",), kind="binary", **meta):
    """An adapter that was never trained: its head is drawn."""
    raw = {"method": "lora", "blocks": [0, 2], "r": 2, "lr": 1e-3, "head_init": "random"}
    adapted = build(network, canonical(raw, network.facts), len(classes), 0, 0)
    folder.mkdir(parents=True)
    save(adapted, folder, {"classes": list(classes), "kind": kind, "task": "home", **meta})
    return folder


@pytest.fixture
def world(tmp_path, network):
    """An adapter by itself, and a table of strangers."""
    frame = pictures(tmp_path / "there")
    frame.to_csv(tmp_path / "there" / "labels.csv", index=False)
    best = adapter(
        tmp_path / "best", network, thresholds=[0.5], pixels={"channels": 1, "white": 0}
    )
    return best, tmp_path / "there" / "labels.csv", frame


def judge(world, tmp_path, **options):
    return autopeft.evaluate(world[0], str(world[1]), out=tmp_path / "out", **options)


def test_the_numbers_are_those_of_scikit_learn(world, tmp_path):
    found = judge(world, tmp_path)
    table = found.predictions
    y, q = table["target"].to_numpy(), table["score"].to_numpy()
    [row] = found.numbers["labels"]
    assert row["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(y, q), abs=1e-6)
    expected = average_precision_score(y, q)
    assert row["metrics"]["average_precision"]["value"] == pytest.approx(expected, abs=1e-6)
    assert row["metrics"]["brier"]["value"] == pytest.approx(brier_score_loss(y, q), abs=1e-6)
    assert row["metrics"]["sensitivity"]["value"] == pytest.approx((q[y == 1] >= 0.5).mean())
    assert row["metrics"]["specificity"]["value"] == pytest.approx((q[y == 0] < 0.5).mean())
    patients = world[2].groupby("patient")["ill"].max()
    assert (row["positives"], row["negatives"]) == (patients.sum(), (1 - patients).sum())


def test_scores_are_the_adapter_s_own(world, tmp_path):
    table = judge(world, tmp_path, batch_size=7).predictions
    model = autopeft.load_adapter(world[0])
    expected = model.predict([world[1].parent / path for path in table["path"]])[:, 0]
    assert table["score"].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_files_and_what_they_may_hold(world, tmp_path):
    found = judge(world, tmp_path)
    assert found.folder == tmp_path / "out" / "best-on-there"
    names = {p.name for p in found.folder.iterdir()}
    assert names == {"evaluation.json", "report.md", "predictions.csv"}
    assert stat.S_IMODE((found.folder / "predictions.csv").stat().st_mode) == 0o600
    for name in ("evaluation.json", "report.md"):
        text = (found.folder / name).read_text()
        assert "p001" not in text
        assert str(tmp_path) not in text
    assert json.loads((found.folder / "evaluation.json").read_text()) == found.numbers
    assert found.numbers["use"] == "Research use; not a medical device."
    assert "RESEARCH USE, not a medical device" in found.report
    assert any("trained on any of these" in line for line in found.numbers["not_known"])
    with pytest.raises(UserError, match="exists already.*--name"):
        judge(world, tmp_path)
    assert judge(world, tmp_path, name="again").folder.name == "again"


def test_a_baseline_s_evaluation_is_not_called_like_the_winner_s(world, tmp_path):
    run = run_beside(world)
    lora = run / "baselines" / "lora_r8"
    lora.parent.mkdir()
    world[0].rename(lora)
    found = autopeft.evaluate(lora, str(world[1]), out=tmp_path / "out")
    assert found.folder.name == f"{run.name}-lora_r8-on-there"


def test_groups_and_what_is_too_small(world, tmp_path):
    found = judge(world, tmp_path, group=("sex", "age:85"))
    rows = {r["group"]: r for r in found.numbers["groups"]}
    assert rows["sex=F"]["scored"]
    assert rows["sex=F"]["metrics"]["auroc"]["low"] < rows["sex=F"]["metrics"]["auroc"]["high"]
    old = rows["age>=85"]
    assert not old["scored"]
    assert set(old["metrics"].values()) == {None}
    assert f"{old['positives']}/{old['negatives']}" in found.report
    women = found.predictions.merge(world[2], on="path").query("sex == 'F'")
    expected = roc_auc_score(women["target"], women["score"])
    assert rows["sex=F"]["metrics"]["auroc"]["value"] == pytest.approx(expected, abs=1e-6)


def test_the_threshold_stays_whatever_the_new_labels(world, tmp_path):
    one = judge(world, tmp_path, name="one")
    turned = world[2].assign(ill=1 - world[2]["ill"])
    turned.to_csv(world[1].with_name("turned.csv"), index=False)
    two = autopeft.evaluate(world[0], str(world[1].with_name("turned.csv")), out=tmp_path / "out")
    for found in (one, two):
        assert found.numbers["adapter"]["thresholds"] == {"ill": 0.5}
    mine, theirs = (f.numbers["labels"][0]["metrics"] for f in (one, two))
    assert mine["sensitivity"]["value"] == pytest.approx(1 - theirs["specificity"]["value"])


def test_color_films_follow_the_adapter_s_rule(world, tmp_path, network):
    frame = pictures(tmp_path / "color", n=30, color=True)
    frame.to_csv(tmp_path / "color" / "t.csv", index=False)
    found = autopeft.evaluate(world[0], str(tmp_path / "color" / "t.csv"), out=tmp_path / "out")
    store = next((tmp_path / "out" / ".cache").glob("images-*/store.json"))
    assert json.loads(store.read_text())["channels"] == 1
    model = autopeft.load_adapter(world[0])
    paths = [tmp_path / "color" / p for p in found.predictions["path"]]
    assert found.predictions["score"].to_numpy() == pytest.approx(
        model.predict(paths)[:, 0], abs=1e-6
    )


def test_several_labels_blanks_and_one_class_only(world, tmp_path, network):
    folder = adapter(
        tmp_path / "several", network, ("ill", "edema", "fracture"), "multilabel",
        thresholds=[0.5, None, 0.4],
    )  # fmt: skip
    frame = world[2].assign(fluid=world[2]["edema"].astype(float), ill=0)
    frame.loc[:30, "fluid"] = np.nan
    csv = world[1].with_name("several.csv")
    frame.to_csv(csv, index=False)
    found = autopeft.evaluate(
        folder, str(csv), out=tmp_path / "out", group="sex", label_map={"edema": "fluid"}
    )
    rows = {r["label"]: r for r in found.numbers["labels"]}
    assert set(rows) == {"ill", "edema"}
    assert rows["ill"]["metrics"]["auroc"] is None
    assert rows["ill"]["metrics"]["specificity"]["value"] >= 0
    assert rows["edema"]["images"] == frame["fluid"].notna().sum()
    assert rows["edema"]["metrics"]["sensitivity"] is None
    assert "ill has one class here (0/60 patients)" in found.report
    text = "; ".join(found.numbers["not_known"])
    assert "fracture" in text
    assert "no threshold for edema" in text
    assert "edema = fluid" in text
    assert set(found.numbers["recalibration"]) == {"ill", "edema"}
    assert "reason" in found.numbers["recalibration"]["ill"]


def test_one_of_several_classes(world, tmp_path, network):
    folder = adapter(tmp_path / "words", network, ("a", "b", "c"), "multiclass")
    kinds = np.array(["a", "b", "x"])[np.arange(len(world[2])) // 2 % 3]
    csv = world[1].with_name("words.csv")
    world[2].assign(label=kinds).to_csv(csv, index=False)
    found = autopeft.evaluate(folder, str(csv), out=tmp_path / "out")
    assert found.numbers["data"]["images"] == 80  # those of class x are somebody else's
    assert found.numbers["unmapped"] == ["c"]
    assert [r["label"] for r in found.numbers["labels"]] == ["a", "b"]
    wide = found.predictions.pivot(index="path", columns="label", values="score")
    assert (wide[["a", "b"]].sum(axis=1) < 1).all()  # c keeps its share of the softmax
    table = found.predictions[found.predictions["label"] == "a"]
    [row] = [r for r in found.numbers["labels"] if r["label"] == "a"]
    expected = roc_auc_score(table["target"], table["score"])
    assert row["metrics"]["auroc"]["value"] == pytest.approx(expected, abs=1e-4)


def run_beside(world, trained=(), tested=(), searched=(), name="there"):
    """Makes the adapter's folder look like ``best/`` of a run with these patients."""
    run = world[0].parent
    info = json.loads((world[0] / "autopeft.json").read_text())
    (world[0] / "autopeft.json").write_text(json.dumps({**info, "task": name}))
    rows = [
        f"images/x{i}.png,{p},{split}"
        for split, people in (("train", trained), ("test", tested), ("search", searched))
        for i, p in enumerate(people)
    ]
    (run / "splits.csv").write_text("\n".join(["path,patient_id,split", *rows]) + "\n")
    return run


def test_patients_who_trained_it_are_refused_or_left_out(world, tmp_path):
    run_beside(world, trained=("p001", "p002", "stranger"), searched=("p003",))
    with pytest.raises(UserError, match="trained on 2 of these 60 patients") as error:
        judge(world, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    found = judge(world, tmp_path, leave_out_trained=True)
    assert found.numbers["data"]["patients"] == 58
    assert not set(found.predictions["patient_id"]) & {"p001", "p002"}
    notes = "; ".join(found.numbers["notes"])
    assert "2 patients that the adapter was trained on were left out" in notes
    assert "1 of these patients helped to choose the adapter" in notes


def test_the_same_ids_elsewhere_are_strangers_and_it_says_so(world, tmp_path):
    run_beside(world, trained=("p001",), name="elsewhere")
    found = judge(world, tmp_path)
    assert found.numbers["data"]["patients"] == 60
    assert any("ids were not compared" in line for line in found.numbers["not_known"])


def test_its_own_test_patients_are_a_look(world, tmp_path):
    from autopeft import ledger

    run_beside(world, tested=("p001", "p002"))
    frame = world[2]
    assert judge(world, tmp_path, name="before").numbers["look"] is None
    inside = frame["patient"].isin(["p001", "p002"])
    home = tmp_path.parent
    ledger.enter(home, frame["patient"][inside].tolist(), frame["path"][inside].tolist(), "r", "e")
    try:
        found = judge(world, tmp_path)
        assert found.numbers["look"] == 2
        assert "2 of these patients are test patients of the adapter's own run: look 2" in (
            found.report
        )
    finally:
        (home / ledger.NAME).unlink()


def test_drift_beside_the_recorded_numbers(world, tmp_path):
    run = run_beside(world)
    info = json.loads((world[0] / "autopeft.json").read_text())
    numbers = {
        "best": {
            "fingerprint": info["fingerprint"],
            "test": {"auroc": {"value": 0.9, "low": 0.85, "high": 0.95}},
        },
        "baselines": {}, "groups": [], "thresholds": {"ill": 0.5}, "counted": {"sex": ["sex=F"]},
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(numbers))
    found = judge(world, tmp_path)
    [row] = found.numbers["drift"]
    new = found.numbers["labels"][0]["metrics"]["auroc"]["value"]
    assert row["difference"]["value"] == pytest.approx(new - 0.9)
    assert row["difference"]["low"] < row["difference"]["value"] < row["difference"]["high"]
    assert {r["attribute"] for r in found.numbers["groups"]} == {"sex"}  # the run's own groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels_map": {}}, "unknown option 'labels_map'.*label_map"),
        ({"min_group": 5}, "--min-group: 5 is too small"),
        ({"batch_size": 0}, "--batch-size: 0 is too small"),
        ({"split": "test"}, "have no splits of their own"),
        ({"label_map": {"ilness": "ill"}}, "no class 'ilness'"),
        ({"label_map": {"ill": "illness"}}, "no column 'illness'"),
        ({"group": ("race",)}, "no column 'race'"),
        ({"patient_column": "who"}, "no column 'who'"),
        ({"name": "a/b"}, "no name for an evaluation"),
        ({"data_root": "/no/such"}, "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(world, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as error:
        judge(world, tmp_path, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_no_adapter_no_label_no_image(world, tmp_path):
    with pytest.raises(UserError, match="is no adapter folder"):
        autopeft.evaluate(tmp_path / "there", str(world[1]), out=tmp_path / "out")
    bare = world[1].with_name("bare.csv")
    world[2].rename(columns={"ill": "sick"}).to_csv(bare, index=False)
    with pytest.raises(UserError, match="no class of the adapter .ill. is a label of"):
        autopeft.evaluate(world[0], str(bare), out=tmp_path / "out")
    (world[1].parent / world[2]["path"][0]).write_bytes(b"no image")
    with pytest.raises(UserError, match="1 image cannot be read"):
        judge(world, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_report(world, tmp_path, capsys, monkeypatch):
    from autopeft.cli import main

    words = ["autopeft", "evaluate", str(world[0]), "--dataset", str(world[1]), "--quiet"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path / "out"), "--group", "sex"])
    main()
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "best-on-there" / "report.md").read_text() in said
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path / "out2"), "--json"])
    main()
    assert json.loads(capsys.readouterr().out)["name"] == "best-on-there"
    monkeypatch.setattr("sys.argv", [*words, "--label-map", "ill"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--label-map: 'ill' is no key=value" in capsys.readouterr().err
