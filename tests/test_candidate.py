"""Candidates: canonical JSON, fingerprint, titles."""

from __future__ import annotations

import json

import pytest

from autopeft.candidate import Candidate, Readout, Stratum, Train

LORA = Stratum((6, 11), ("proj", "qkv"), "lora", {"r": 8, "lora_alpha": 16})
CANDIDATE = Candidate((LORA,), Train(), Readout(12, "token"))


def test_the_canonical_form_is_what_the_design_says():
    assert json.loads(CANDIDATE.to_json()) == {
        "v": 1,
        "strata": [
            {
                "blocks": [6, 11],
                "modules": ["proj", "qkv"],
                "method": "lora",
                "options": {"r": 8, "lora_alpha": 16},
            }
        ],
        "train": {
            "optimizer": "adamw",
            "lr": 0.001,
            "weight_decay": 0.01,
            "layer_decay": 1.0,
            "drop_path": 0.0,
            "label_smoothing": 0.0,
            "loss": "bce",
            "sampling": "plain",
            "head_init": "probe",
        },
        "readout": {"block": 12, "pool": "token"},
        "post": None,
    }
    assert ": " not in CANDIDATE.to_json()


def test_the_fingerprint_is_the_same_for_ever():
    """Old runs are resumed by it: change it only together with the version in the JSON."""
    assert CANDIDATE.fingerprint == "23b0e170ec75d4a9"
    assert len(CANDIDATE.fingerprint) == 16


def test_equal_to_six_digits_is_equal():
    def at(lr):
        return Candidate((LORA,), Train(lr=lr), Readout(12, "token"))

    assert at(1.00000049e-3).fingerprint == at(1e-3).fingerprint
    assert at(1.00001e-3).fingerprint != at(1e-3).fingerprint
    swapped = Stratum((6, 11), ("proj", "qkv"), "lora", {"lora_alpha": 16, "r": 8})
    assert Candidate((swapped,), Train(), CANDIDATE.readout).fingerprint == CANDIDATE.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        Candidate((), Train(), Readout(12, "token")),
        Candidate((LORA, LORA), Train(), Readout(12, "token")),
        Candidate(
            (Stratum((5, 11), LORA.modules, "lora", LORA.options),), Train(), CANDIDATE.readout
        ),
        Candidate((Stratum((6, 11), ("qkv",), "lora", LORA.options),), Train(), CANDIDATE.readout),
        Candidate((Stratum((6, 11), LORA.modules, "lora", {"r": 4}),), Train(), CANDIDATE.readout),
        Candidate((LORA,), Train(sampling="group"), Readout(12, "token")),
        Candidate((LORA,), Train(group_dro=True), Readout(12, "token")),
        Candidate((LORA,), Train(), Readout(11, "token")),
        Candidate((LORA,), Train(), Readout(12, "avg")),
    ],
)
def test_whatever_differs_differs_in_the_fingerprint(other):
    assert other.fingerprint != CANDIDATE.fingerprint


def test_it_is_read_back():
    again = Candidate.from_dict(json.loads(CANDIDATE.to_json()))
    assert again == CANDIDATE
    assert again.fingerprint == CANDIDATE.fingerprint
    assert Candidate.from_dict(CANDIDATE.to_dict()) == CANDIDATE


def test_what_came_later_is_written_only_where_it_is_used():
    robust = Candidate((LORA,), Train(sampling="group", group_dro=True), Readout(12, "token"))
    assert json.loads(robust.to_json())["train"]["group_dro"] is True
    assert "group_dro" not in json.loads(CANDIDATE.to_json())["train"]
    assert Candidate.from_dict(json.loads(robust.to_json())) == robust


def test_names_for_people():
    bitfit = Stratum((0, 5), (), "bitfit", {})
    assert CANDIDATE.method == "lora"
    assert CANDIDATE.title == "lora r=8 blocks 6-11, readout 12 token"
    two = Candidate((bitfit, LORA, LORA), Train(), Readout(8, "token+avg"))
    assert two.method == "bitfit+lora"
    assert two.title.startswith("bitfit blocks 0-5 + lora r=8 blocks 6-11 + ")
    probe = Candidate((), Train(), Readout(8, "avg"))
    assert probe.method == "linear_probe"
    assert probe.title == "linear_probe, readout 8 avg"
