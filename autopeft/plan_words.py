"""A plan in plain words, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.words import percent

Numbers = Mapping[str, Any]

_BUSY = 1.2  # load a core
_GROUPS = 4  # groups whose detectable difference is shown
_NAMES = {
    "start": "start",
    "decode": "decoding",
    "prefix": "readouts",
    "baselines": "reference baselines",
    "search": "search",
    "confirm": "confirmation, other baselines, ablations",
    "test": "scoring confirm and test",
    "answer": "intervals and report",
}


def plan_lines(numbers: Numbers) -> list[str]:
    """Everything that ``autopeft plan`` prints, a line each; heads are in capitals."""
    title = f"{numbers['run']} | PLAN, nothing was trained | Research use; not a medical device."
    lines = [title, *_state(numbers), ""]
    for head, found in (
        ("DATA", _data(numbers["data"])),
        ("GROUPS", _groups(numbers)),
        ("POWER", _power(numbers["power"])),
        ("GAPS", _gaps(numbers["gaps"])),
        ("TIME", _time(numbers)),
        ("BUDGET", _budget(numbers.get("budget"))),
        ("SPACE", _room(numbers)),
        ("DECLARES", _declares(numbers["protocol"])),
        ("NOTES", list(numbers["data"]["notes"])),
    ):
        lines += [f"{head if i == 0 else '':<9}{line}" for i, line in enumerate(found)]
    return lines


def _state(numbers: Numbers) -> list[str]:
    told = {
        "finished": "This run is finished: the search command shows its answer.",
        "begun": "This run was begun: the search command goes on with it. What is done is not "
        "taken off the times below.",
    }
    return [told[numbers["state"]]] if numbers["state"] in told else []


# ---- who ----------------------------------------------------------------------------------------


def _data(data: Numbers) -> list[str]:
    unit = data["unit"]
    first = f"{data['task']}: {data['images']:,} images of {data['patients']:,} {unit}s"
    if data["several_images"]:
        first += f"; {data['several_images']:,} have several, at most {data['most_images']}"
    lines = [first]
    for split, found in data["splits"].items():
        counts = "; ".join(
            f"{name} {c['positives']:,}+ / {c['negatives']:,}-"
            + (f", {percent(c['blank'] / found['images'])} blank" if c["blank"] else "")
            for name, c in found["classes"].items()
        )
        lines.append(
            f"{split}: {found['images']:,} images of {found['patients']:,} {unit}s; {counts}"
        )
    known = [a for a, found in data["unknown"].items() if not found["patients"]]
    if known:
        lines.append(f"{', '.join(known)}: known for every {unit}")
    for attribute, found in data["unknown"].items():
        if found["patients"]:
            share = percent(found["patients"] / max(1, found["of"]))
            lines.append(f"{attribute} is unknown for {found['patients']:,} {unit}s ({share})")
    return [*lines, *_copies(data["identical"], unit)]


def _copies(found: Numbers, unit: str) -> list[str]:
    told = "" if found["whole"] else " (there was no time for all files)"
    if not found["copies"]:
        return [f"no two files are identical{told}"]
    many = found["copies"] > 1
    line = f"{found['copies']:,} file{'s are copies' if many else ' is a copy'} of another{told}"
    if found["patients"]:
        line += f"; {found['patients']:,} images belong to several {unit}s"
    if found["splits"]:
        line += f"; {found['splits']:,} lie in several splits: what judges was trained on"
    return [line]


def _groups(numbers: Numbers) -> list[str]:
    found, inner = numbers["groups"], numbers["inner"]
    why = f": {inner['why']}" if inner["why"] else ", as asked"
    lines = [f"--inner {inner['chosen']}{why}"]
    for attribute, groups in found["counted"].items():
        named = ", ".join(groups) or "no group"
        alone = "counts; fewer than two, so nothing is compared"
        lines.append(f"{attribute}: {named} {'count' if len(groups) > 1 else alone}")
    if not found["counted"]:
        lines.append("no groups are declared (--group sex --group age:60)")
    return [*lines, *found["left_out"]]


# ---- what can be shown --------------------------------------------------------------------------


def _power(power: Numbers) -> list[str]:
    a, margin = power["assumed"], power["margin"]
    lines = []
    for split in ("confirm", "test"):
        sets = dict(power[split])
        every = sets.pop("all")
        lines.append(f"{split}: {_difference(every)}")
        weak = sorted(sets.items(), key=lambda item: -(item[1]["value"] or 1.0))
        lines += [f"{split}, {name}: {_difference(d)}" for name, d in weak[:_GROUPS]]
        if "worst_group" in power:
            lines.append(f"{split}, worst group: {_worst(power['worst_group'][split])}")
    if "worst_group" in power:
        lines += _worst_verdict(power["worst_group"]["test"], margin)
    else:
        lines += _verdict(power["test"]["all"], margin)
    lines.append(
        f"assumed: AUROC {_short(a['auroc'])}, the two models' errors correlate by "
        f"{_short(a['correlation'])} (range: {_short(a['correlations'][0])} to "
        f"{_short(a['correlations'][1])}), alpha {_short(a['alpha'])}, power "
        f"{percent(a['power'])}, patients counted, not images"
    )
    return lines


def _verdict(found: Numbers, margin: float) -> list[str]:
    if found["value"] is None:
        return ["the verdict will be: cannot tell"]
    if not margin:
        return []
    if found["value"] > margin:
        return [
            f"a margin of {_short(margin)} cannot be shown with these test patients: expect "
            f'"cannot tell" of equal models; it takes about {found["times"]:.0f} times as many'
        ]
    return [f'a margin of {_short(margin)} can be shown: "not worse" of equal models']


def _worst_verdict(found: Numbers, margin: float) -> list[str]:
    if found["value"] is None or not margin:
        return []
    if found["value"] > margin:
        return [
            f"a margin of {_short(margin)} cannot be shown with these test patients: expect "
            f'"cannot tell" of equal models with equal groups; it takes at least about '
            f"{found['times']:.0f} times as many"
        ]
    if found["enough"] > margin:
        return [
            f"a margin of {_short(margin)} may or may not be shown: it is not sure that all "
            "groups pass"
        ]
    told = '"not worse" of equal models with equal groups'
    return [f"a margin of {_short(margin)} can be shown: {told}"]


def _worst(found: Numbers) -> str:
    if found["value"] is None:
        return "too few patients in every group to say what a verdict on it can show"
    if found["groups"] == 1:
        return f"one group can be scored, smallest detectable difference {_short(found['value'])}"
    return (
        f"smallest detectable difference {_short(found['value'])} or more: all groups must pass, "
        f"each against the other model's worst group ({_short(found['enough'])} is enough)"
    )


def _difference(found: Numbers) -> str:
    sides = ", ".join(f"{p:,}+ / {n:,}-" for p, n in found["sides"][:3])
    sides += " ..." if len(found["sides"]) > 3 else ""
    if found["value"] is None:
        return f"too few patients for an interval ({sides})"
    return (
        f"smallest detectable difference of winner and baseline {_short(found['value'])} "
        f"({_short(found['low'])} to {_short(found['high'])}; {sides})"
    )


def _gaps(gaps: Numbers) -> list[str]:
    lines = []
    for attribute, found in gaps.items():
        shown = ", ".join(
            f"{_short(value)} on {split}" if value else f"unknown on {split} (too few patients)"
            for split, value in found.items()
        )
        lines.append(f"{attribute}: smallest detectable gap {shown}")
    return lines


# ---- how long -----------------------------------------------------------------------------------


def _time(numbers: Numbers) -> list[str]:
    if "seconds" not in numbers:
        return [f"not estimated: {numbers['timing']['none']}"]
    found, search, timing = numbers["seconds"], numbers["search"], numbers["timing"]
    total = found["total"]
    workers = f" on {found['workers']} workers" if found["workers"] > 1 else ""
    lines = [
        f"{duration(total['low'], total['high'])} in all{workers}; confirmation, baselines and "
        f"test take {percent(found['confirm_share'])} of it"
    ]
    for name, part in found["parts"].items():
        lines.append(f"{_NAMES[name]}: {duration(part['low'], part['high'])}")
    lines.append(
        f"search: {search['trials']} candidates, {_span(search['rungs'])} rungs, "
        f"{_span(search['finished'])} trained to the end; {percent(search['whole'])} train from "
        f"the first block, {percent(search['cached'])} from kept states, "
        f"{percent(search['probes'])} are probes"
    )
    lines.append(
        f"timed on {timing['images']} train images in {timing['seconds']:.0f} s; every method is "
        "taken to cost what LoRA does on as many blocks"
    )
    if timing["busy"] > _BUSY:
        lines.append(
            f"other work was on this machine (load {timing['busy']:.1f} a core): these are the "
            "times beside it"
        )
    if found["unknown_workers"]:
        lines.append("the cluster was not asked: it is counted as one worker for two cores here")
    return lines


def _budget(found: Numbers | None) -> list[str]:
    if not found:
        return []
    kept = duration(found["kept_back"], found["kept_back"])
    before = duration(found["before"], found["before"])
    whole = duration(found["seconds"], found["seconds"])
    lines = [f"of {whole}, {before} go before trial 1 and {kept} are kept for what follows"]
    slow, fast = found["slow"], found["fast"]
    if fast["left"] <= 0:
        return [*lines, "that is more than the budget: one candidate is tried, and it overruns"]
    trials, ends = [[s[k] for s in (slow, fast)] for k in ("trials", "finished")]
    return [
        *lines,
        f"{_span(trials)} of {found['asked']} candidates fit, {_span(ends)} of them to the end",
    ]


def _room(numbers: Numbers) -> list[str]:
    if "disk" not in numbers:
        return []
    disk, memory = numbers["disk"], numbers["memory"]
    full = " (--cache-gb is full)" if disk["prefix"] > 0.9 * disk["prefix_limit"] else ""
    return [
        f"disk: images {size(disk['images'])}, frozen states {size(disk['prefix'])}{full}, "
        f"states of paused trials at most {size(disk['states'])}, predictions "
        f"{size(disk['predictions'])}",
        f"memory: about {size(memory['worker'])} a worker (seen here, {memory['images']} images "
        "a step)",
    ]


def _declares(protocol: Numbers) -> list[str]:
    lines = protocol["lines"]
    rules = ("inner", "finalists", "seeds", "baselines", "ranking", "contrast", "margin", "words")
    told = {k: lines[k] for k in rules if k in lines}
    return [
        f"protocol {protocol['sha256']} (the same for whoever plans this run on a like machine)",
        *(f"{name}: {_plain(value)}" for name, value in told.items()),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def duration(low: float, high: float) -> str:
    """A range of seconds for people: ``about 11 to 18 min``."""
    unit, name = (1, "s") if high < 100 else (60, "min") if high < 6000 else (3600, "h")
    a, b = low / unit, high / unit
    digits = 1 if b < 10 and unit > 1 else 0
    short, long = f"{a:.{digits}f}", f"{b:.{digits}f}"
    return f"about {long} {name}" if short == long else f"about {short} to {long} {name}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def _span(pair: Any) -> str:
    low, high = min(pair), max(pair)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _short(value: float) -> str:
    return f"{value:.3f}".rstrip("0").removeprefix("0") if value < 1 else f"{value:g}"
