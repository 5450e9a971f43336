"""How sure the choice is, in words."""

import json
from pathlib import Path

from autopeft import choice_words

REPORT = Path(__file__).parent / "report"


def load(name="binary"):
    return json.loads((REPORT / f"{name}.json").read_text())


def replayed(numbers, **changes):
    """Numbers with a replay whose pick is the winner."""
    mine = numbers["best"]["fingerprint"]
    pick = {"number": 3, "title": "lora", "fingerprint": mine, "share": 0.31}
    own = {
        "share": 0.31, "family": "lora", "family_share": 0.78, "first_block": 8,
        "at_least_share": 0.91,
    }  # fmt: skip
    found = {"naive": 0.861, "value": 0.853, "low": 0.81, "high": 0.89, "optimism": 0.008}
    numbers["replay"] = {
        "resamples": 1000, "candidates": 11, "metric": "worst_group_auroc", "feasible": 1.0,
        "pick": pick, "own": own, "corrected": {"worst_group_auroc": found}, "notes": [],
        **changes,
    }  # fmt: skip
    return numbers


def test_honesty_counts_looks():
    numbers = load()
    lines = choice_words.honesty_lines(numbers)
    assert lines[0] == (
        "32 candidates (11 complete, 20 pruned, 1 failed), 61 looks at 150 search patients"
    )
    assert lines[1].startswith("optimism of the search +0.021 (-0.031 to +0.073)")
    assert "confirmed on 100 unseen patients, 3 fresh seeds" in lines
    numbers["optimism"].pop("value")
    assert not any("optimism" in line for line in choice_words.honesty_lines(numbers))


def test_how_sure():
    assert choice_words.sure_lines(load()) == []
    numbers = replayed(load())
    assert choice_words.sure_lines(numbers) == [
        "how sure? same recipe in 31% of replays, same family 78%, blocks >= 8 in 91%"
    ]
    numbers["replay"]["pick"]["fingerprint"] = "another"
    assert choice_words.sure_lines(numbers)[1] == (
        "search alone would have picked lora: 31% of replays"
    )
    numbers["replay"]["own"] = {
        "share": None, "family": "linear_probe", "family_share": 0.04, "first_block": 12,
        "at_least_share": 0.04,
    }  # fmt: skip
    (line, _) = choice_words.sure_lines(numbers)
    assert line == "how sure? same family 4% of replays (the winner was no trial)"


def test_what_replays_cost_the_pick():
    numbers = replayed(load(), feasible=0.9, notes=["x keeps its value"])
    numbers["finalists"] = [{"repeats": 2}, {"repeats": 3}]
    numbers["ranked_by_replay"] = True
    lines = choice_words.honesty_lines(numbers)
    assert (
        "optimism by 1,000 replays of the choice among the 11 fully trained, not those stopped "
        "early: +0.008; worst group AUROC of its own pick 0.861 on search, "
        "0.853 (0.810 to 0.890) on patients left out of choosing"
    ) in lines
    assert "in 10% of replays no trial met the constraints" in lines
    assert "x keeps its value" in lines
    assert "confirmed on 100 unseen patients, 2 fresh seeds, 3 for the last two" in lines
    assert "confirm has too few patients to rank the finalists: replays on search did" in lines
    numbers["trials"]["pruned"] = 0
    assert any("the 11 fully trained: +0.008" in t for t in choice_words.honesty_lines(numbers))
    numbers["replay"]["corrected"] = {}
    assert not any("by 1,000 replays" in line for line in choice_words.honesty_lines(numbers))


def test_one_candidate_is_no_choice():
    numbers = replayed(load(), candidates=1)
    assert choice_words.sure_lines(numbers) == [
        "how sure? one candidate was fully trained: replays have nothing to choose among"
    ]
    numbers["replay"]["pick"]["fingerprint"] = "another"
    assert choice_words.sure_lines(numbers)[1] == "search alone would have picked lora"
    lines = choice_words.honesty_lines(numbers)
    assert (
        "one candidate was fully trained: replays cannot tell the optimism of choosing it" in lines
    )
    assert not any("100%" in line or "by 1,000" in line for line in lines)


def test_a_choice_after_the_run_says_what_it_is_not():
    numbers = replayed(load())
    best = numbers["best"]
    told = {
        "candidate": {"number": 3, **{k: best[k] for k in ("fingerprint", "title", "config")}},
        "search": {"auroc": 0.86}, "winner": "another", "objective": "auroc", "feasible": True,
        "post_hoc": "post hoc", "replay": numbers["replay"],
    }  # fmt: skip
    lines = choice_words.picked_lines(told)
    assert lines[0] == "post hoc"
    assert lines[-2:] == [
        "its adapter is not kept: nothing was trained", "RESEARCH USE, not a medical device"
    ]  # fmt: skip
    assert any("of choosing among the 11 fully trained: 0.853" in line for line in lines)
    told["replay"] = numbers["replay"] | {"candidates": 1}
    lines = choice_words.picked_lines(told)
    assert "one candidate was fully trained: there was nothing to choose among" in lines
    assert not any("replays" in line or "taken off" in line for line in lines)
