"""A look at an external check is a look: entered, told, and counted again by verify."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autopeft import ledger, protocol, verification, writing


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def opened(runs: Path, name: str, said: list[str]):
    """A run that is at its end, of test patients of its own and one external check for all."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "study.journal").touch()

    def rows(*patients):
        paths = np.array([f"{p}.png" for p in patients])
        return SimpleNamespace(patient=np.array(patients), path=paths)

    held = {"test": rows(f"{name}-1", f"{name}-2"), "official_valid": rows("v1", "v2", "v3")}
    answer = SimpleNamespace(
        settings=SimpleNamespace(
            run_dir=folder, runs_dir=str(runs), run_name=name, dataset="chexpert"
        ),
        task=SimpleNamespace(
            root=runs, external=("official_valid",), rows=held.__getitem__, open_test=lambda: None
        ),
        bench=SimpleNamespace(study=SimpleNamespace(fact=lambda fact: f"id-{name}")),
        thresholds=(0.5,),
        look=ledger.Look(),
        external_looks={},
    )
    writing._open_test(answer, SimpleNamespace(say=said.append))
    return answer


def test_an_external_check_is_a_look_of_its_own(tmp_path):
    said: list[str] = []
    first, second = (opened(tmp_path, name, said) for name in ("one", "two"))
    assert (first.look.number, second.look.number) == (1, 1)
    assert first.external_looks == {"official_valid": 1}
    assert second.external_looks == {"official_valid": 2}
    assert said == [
        "external check official_valid: look 2: 3 of the 3 test patients were looked at by 1 "
        "earlier run before"
    ]
    events = [e["event"] for e in protocol.events(tmp_path / "two")]
    assert events == ["test_opened", "look", "external_look"]

    def checked(**stored):
        numbers = {"look": 1, "looks": {"unknown": 0}, "external_looks": {"official_valid": 2}}
        (found,) = verification._ledger(tmp_path / "two", numbers | stored)
        return found

    assert (checked().word, checked().detail) == ("ok", "look 1")
    assert checked(external_looks={"official_valid": 1}).word == "differs"
    assert checked(look=2).word == "differs"
