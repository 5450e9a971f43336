"""What may be said of attacks counts every attack that was run on the winner or its recipe."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from autopeft import context_numbers
from autopeft.bench import Model
from autopeft.metrics.memorization import Attack

FAILED = Attack("loss", 0.5, 0.5, 0.0, -0.1, 0.1, 0.1, 0.0, 0.2, 0.1, 40, 40)
STRONG = replace(FAILED, name="likelihood ratio", value=0.3, low=0.2, high=0.4)


def said(monkeypatch, recipes):
    """The words of a run whose winner's own attacks failed."""
    monkeypatch.setattr(context_numbers, "attacks", lambda *_: [FAILED])
    monkeypatch.setattr(context_numbers, "generalization_gaps", lambda *_: {})
    candidate = SimpleNamespace(fingerprint="f")
    answer = SimpleNamespace(
        audience=SimpleNamespace(
            null=(0, 0), both=lambda *_: None, members_of=lambda outcome: (0, 0),
            counted={}, labels=None,
        ),
        bench=SimpleNamespace(trained={("f", 0): None}),
        models=[Model("winner", candidate)],
        recipes=recipes,
        planted={},
    )  # fmt: skip
    return context_numbers.memorization_of(answer)["words"]


def test_an_attack_on_the_recipe_is_an_attack(monkeypatch):
    assert said(monkeypatch, {}).startswith("no attack that we ran succeeded")
    words = said(monkeypatch, {"winner": [STRONG], "lora_r8": [FAILED]})
    assert words == "training patients can be told from others (by likelihood ratio)"
    assert said(monkeypatch, {"lora_r8": [STRONG]}).startswith("no attack that we ran succeeded")
