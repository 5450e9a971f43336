"""How sure the choice is and what it cost, in plain words: one wording for terminal and page."""

from __future__ import annotations

from autopeft import words
from autopeft.words import Numbers

_IN_AUROC = " (of the worst group, which ranked, replays alone can tell it)"


def sure_lines(numbers: Numbers) -> list[str]:
    """How often the choice, repeated on resampled search patients, ends at what won."""
    replay = numbers.get("replay")
    if not replay:
        return []
    own, told = replay["own"], []
    pick, often = replay["pick"], words.percent(replay["pick"]["share"])
    apart = pick["fingerprint"] != numbers["best"]["fingerprint"]
    if replay["candidates"] == 1:
        lines = ["how sure? one candidate was fully trained: replays have nothing to choose among"]
        return lines + ([f"search alone would have picked {pick['title']}"] if apart else [])
    if own["share"] is not None:
        told.append(f"same recipe in {words.percent(own['share'])} of replays")
    told.append(f"same family {words.percent(own['family_share'])}")
    if own["family"] != "linear_probe" and own["first_block"] > 0:
        told.append(f"blocks >= {own['first_block']} in {words.percent(own['at_least_share'])}")
    where = "" if own["share"] is not None else " of replays (the winner was no trial)"
    lines = [f"how sure? {', '.join(told)}{where}"]
    if apart:
        lines.append(f"search alone would have picked {pick['title']}: {often} of replays")
    return lines


def honesty_lines(numbers: Numbers) -> list[str]:
    """How often search patients were looked at, what that cost, and who confirmed."""
    optimism, patients = numbers["optimism"], numbers["patients"]
    asked, tried = optimism["asked"], optimism["candidates"]
    early = f" of the {asked} asked for" if tried < asked else ""
    lines = [
        f"{words.count(tried, 'candidate')}{early} ({words.history(numbers)}), "
        f"{words.count(optimism['looks'], 'look')} at {words.searched(numbers)}"
    ]
    if "value" in optimism:
        lines.append(
            f"optimism of the search {words.interval(optimism, signed=True)}: its own pick's "
            f"{words.metric_name(optimism['metric'])} on {_place(numbers)} minus confirm"
            + ("" if optimism["metric"] == numbers["primary"] else _IN_AUROC)
        )
    lines += _replay_lines(numbers)
    # A second look at test is one at confirm too: the same data were divided in the same way.
    unseen = " unseen" if numbers["look"] == 1 else " other"
    lines.append(
        f"confirmed on {patients['confirm']:,}{unseen} patients, {_confirm_seeds(numbers)}"
    )
    if numbers.get("ranked_by_replay"):
        lines.append("confirm has too few patients to rank the finalists: replays on search did")
    lines.append(f"test of {patients['test']:,} patients opened once (look {numbers['look']})")
    lines += words.looks_lines(numbers)
    if not numbers["feasible"]:
        lines.append("no trial met the constraints on search: the front is the least violating")
    return lines


def _replay_lines(numbers: Numbers) -> list[str]:
    """What is left of the search's own pick without the luck of being picked."""
    replay = numbers.get("replay")
    if not replay:
        return []
    metric, place = replay["metric"], _place(numbers)
    if replay["candidates"] == 1:
        return ["one candidate was fully trained: replays cannot tell the optimism of choosing it"]
    found, lines = replay["corrected"].get(metric), []
    if found:
        early = ", not those stopped early" if numbers["trials"]["pruned"] else ""
        lines.append(
            f"optimism by {replay['resamples']:,} replays of the choice among the "
            f"{replay['candidates']} fully trained{early}: {found['optimism']:+.3f}; "
            f"{words.metric_name(metric)} of its own pick {found['naive']:.3f} on {place}, "
            f"{words.interval(found)} on patients left out of choosing"
        )
    none = 1 - replay["feasible"]
    if none > 0 and numbers["feasible"]:
        lines.append(f"in {words.percent(none)} of replays no trial met the constraints")
    return lines + list(replay["notes"])


def _confirm_seeds(numbers: Numbers) -> str:
    """``3 fresh seeds, 5 for the last two``."""
    most = numbers["best"]["seeds"]["repeats"]
    few = min((f.get("repeats", most) for f in numbers.get("finalists", ())), default=most)
    return words.seeds(numbers) if few == most else f"{few} fresh seeds, {most} for the last two"


def _place(numbers: Numbers) -> str:
    return "the folds" if numbers.get("inner", {}).get("folds") else "search"


def picked_lines(numbers: Numbers) -> list[str]:
    """What ``autopeft choose`` found, beginning and ending with what it is not."""
    picked, told = numbers["candidate"], numbers["search"]
    same = picked["fingerprint"] == numbers["winner"]
    lines = [
        numbers["post_hoc"],
        f"{numbers['objective']} picks trial {picked['number']}: {picked['title']}"
        + (" (the run's own winner)" if same else ""),
        words.method_words(picked["config"]),
        f"{words.readout_words(picked['config'])}; {words.training_words(picked['config'])}",
        "on the patients of the search: "
        + ", ".join(f"{words.metric_name(m)} {_value(v)}" for m, v in told.items()),
    ]
    if not numbers["feasible"]:
        lines.append("no trial meets the constraints: it violates them least")
    replay = numbers["replay"]
    if replay and replay["candidates"] == 1:
        lines.append("one candidate was fully trained: there was nothing to choose among")
    elif replay:
        own = replay["own"]
        lines.append(
            f"how sure? picked in {words.percent(own['share'])} of {replay['resamples']:,} "
            f"replays, same family {words.percent(own['family_share'])}"
        )
        for metric, found in replay["corrected"].items():
            lines.append(
                f"{words.metric_name(metric)} of choosing among the {replay['candidates']} fully "
                f"trained: {words.interval(found)}, {found['optimism']:+.3f} of optimism taken "
                "off; the luck of one seed is not"
            )
        lines += replay["notes"]
    if not same:
        lines.append("its adapter is not kept: nothing was trained")
    return [*lines, "RESEARCH USE, not a medical device"]


def _value(value: float | None) -> str:
    """Shares with three digits, counts without."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
