"""What a result says, in plain words: one wording for the terminal and for the page.

Every function reads ``result.json`` and gives plain text. Names that come from a user (labels,
groups, files) are not escaped here; whoever prints does that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PureWindowsPath
from typing import Any

Numbers = Mapping[str, Any]

RESEARCH = "RESEARCH USE, not a medical device"
SPLITS = ("train", "probe", "search", "confirm", "test", "uncertain")
UNKNOWN = "unknown"

_MOST_RATES = 6  # groups whose share of uncertain labels is told; result.json has all

# Training fields that are told only where they differ from doing nothing.
_QUIET = {"layer_decay": 1.0, "drop_path": 0.0, "label_smoothing": 0.0, "loss": "bce"}


def interval(value: Mapping[str, Any] | None, signed: bool = False) -> str:
    """``0.861 (0.840 to 0.880)``, ``0.861`` where there are no bounds, or ``n/a``."""
    if value is None:
        return "n/a"
    form = "{:+.3f}" if signed else "{:.3f}"
    if value.get("low") is None:
        return form.format(value["value"])
    low, high = form.format(value["low"]), form.format(value["high"])
    return f"{form.format(value['value'])} ({low} to {high})"


def number(value: float | None) -> str:
    """``0.861``, or ``n/a``."""
    return "n/a" if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    """``13%``, or ``n/a``."""
    return "n/a" if share is None else f"{share:.0%}"


def printable(text: str) -> str:
    """The text without control characters: a label must not steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def metric_name(name: str) -> str:
    """``worst_group_auroc`` -> ``worst group AUROC``; ``auroc:Edema`` -> ``AUROC, Edema``."""
    head, _, rest = name.partition(":")
    words = head.replace("_", " ").replace("auroc", "AUROC")
    return f"{words}, {rest}" if rest else words


def plugin_name(given: str) -> str:
    """A space's or objective's name; of a user's file only the stem: a page shows no path."""
    return PureWindowsPath(given).stem  # knows both kinds of slashes


def externals(numbers: Numbers) -> list[str]:
    """Names of the external checks."""
    return [split for split in numbers["patients"] if split not in SPLITS]


def metrics_shown(numbers: Numbers) -> list[str]:
    """AUROC, and the primary metric where it is another one."""
    return list(dict.fromkeys(["auroc", str(numbers["primary"])]))


def models(numbers: Numbers) -> dict[str, Numbers]:
    """Winner and baselines by name, in this order."""
    return {"winner": numbers["best"], **numbers["baselines"]}


# ---- verdict ------------------------------------------------------------------------------------


def contrast_lines(numbers: Numbers) -> list[str]:
    """The declared contrast with its intervals, and whether accuracy was kept."""
    contrast, kept = numbers["contrast"], numbers["accuracy_kept"]
    against = f"winner minus {contrast['baseline']}"
    lines = [
        f"{metric_name(contrast['metric'])} on test, {against}: "
        f"{interval(contrast['adapter'], signed=True)} this adapter"
    ]
    if contrast["recipe"]:
        recipe = interval(contrast["recipe"], signed=True)
        lines.append(f"the same over fresh seeds: {recipe} this recipe")
    if contrast["primary_undefined_on_test"]:
        lines.append("the objective's own metric is undefined on test: AUROC stands in its place")
    lines.append(
        f"AUROC on confirm, whose patients also chose the winner, winner minus "
        f"{kept['baseline']} (the strongest other model there): {_kept(kept)} "
        f"(margin {kept['margin']:g})"
    )
    if kept.get("test"):
        lines.append(f"the same on test, whose patients chose nothing: {_kept(kept['test'])}")
    return lines


def _kept(found: Mapping[str, Any]) -> str:
    said = "not worse" if found["kept"] else "not shown to be kept"
    return f"{interval(found['difference'], signed=True)} {said}"


def reading_lines(numbers: Numbers) -> list[str]:
    """What the declared contrast would be with uncertain test labels read as 0 and as 1."""
    found = numbers.get("readings") or {}
    if not found:
        return []
    told = "; ".join(
        f"read as {value} {interval(found[name]['difference'], signed=True)}, "
        f"{found[name]['word']}"
        + (f", levelled down {', '.join(down)}" if (down := found[name]["levelled_down"]) else "")
        for name, value in (("as_zero", 0), ("as_one", 1))
    )
    lines = [
        f"{found['labels']} uncertain test labels take no part in any number; {told}: the verdict "
        + ("hangs on them" if found["flips"] else "does not hang on them")
        + " (those of confirm patients were not read)"
    ]
    rows = [row for row in found["rates"] if row["group"] not in ("all", UNKNOWN)]
    every = [row for row in found["rates"] if row["group"] == "all"]
    several = len(every) > 1
    shown = sorted(rows, key=lambda row: -float(row["uncertain"]))[:_MOST_RATES]
    for what, some in (("all test images", every), ("groups with the most", shown)):
        told = ", ".join(
            ("" if row["group"] == "all" else f"{row['group']} ")
            + (f"{row['label']} " if several else "")
            + f"{row['uncertain']:.1%}"
            for row in some
        )
        if told:
            lines.append(f"uncertain labels, {what}: {told}")
    return lines


# ---- winner -------------------------------------------------------------------------------------


def method_words(config: Mapping[str, Any]) -> str:
    """``lora (r=8, lora_alpha=16) on fc1, qkv of blocks 8-11``."""
    parts = []
    for stratum in config["strata"]:
        options = ", ".join(_option(k, v) for k, v in stratum["options"].items() if v)
        modules = ", ".join(stratum["modules"])
        first, last = stratum["blocks"]
        parts.append(
            stratum["method"]
            + (f" ({options})" if options else "")
            + (f" on {modules} of" if modules else " on")
            + (f" block {first}" if first == last else f" blocks {first}-{last}")
        )
    return "; ".join(parts) or "linear probe (the backbone stays as it is)"


def _option(name: str, value: Any) -> str:
    """``r=8``, ``lora_alpha=16``, or ``use_dora``; what is off is not told."""
    if value is True:
        return name
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def readout_words(config: Mapping[str, Any]) -> str:
    """``the head reads after 12 blocks, token+avg``."""
    readout = config["readout"]
    return f"the head reads after {readout['block']} blocks, {readout['pool']}"


def training_words(config: Mapping[str, Any]) -> str:
    """Optimizer, learning rate and whatever differs from doing nothing."""
    train = config["train"]
    if train["optimizer"] == "lbfgs":
        words = ["solved to its optimum", f"L2 strength {train['weight_decay']:g}"]
    else:
        words = [
            str(train["optimizer"]),
            f"lr {train['lr']:g}",
            f"weight decay {train['weight_decay']:g}",
        ]
    for name, nothing in _QUIET.items():
        if name in train and train[name] != nothing:
            words.append(f"{name.replace('_', ' ')} {train[name]}")
    if train["sampling"] != "plain":
        words.append(f"sampling by {train['sampling'].replace('_x_', ' and ')}")
    if train.get("group_dro"):
        words.append("group DRO")
    return ", ".join(words)


def size_words(numbers: Numbers) -> str:
    """``148,225 trained parameters (0.7% of the backbone's)``."""
    trained = numbers["best"]["trainable_params"]
    words = f"{trained:,} trained parameters"
    whole = numbers["backbone"].get("params")
    return words if not whole else f"{words} ({100 * trained / whole:.2g}% of the backbone's)"


# ---- groups and external checks -----------------------------------------------------------------


def group_name(row: Mapping[str, Any]) -> str:
    """``sex=F``; of patients without the attribute ``sex unknown``."""
    if row["group"] != UNKNOWN:
        return str(row["group"])
    return f"{_attribute(row)} unknown"


def gap_line(numbers: Numbers) -> str | None:
    """The largest difference between groups on test, which says little alone."""
    opponent = numbers["contrast"]["baseline"]
    gaps = {n: models(numbers)[n]["test"].get("auroc_gap") for n in ("winner", opponent)}
    if None in gaps.values():
        return None
    told = ", ".join(f"{name} {interval(gap)}" for name, gap in gaps.items())
    return (
        f"largest AUROC difference between groups of one attribute: {told}; "
        "chance alone makes it larger than 0"
    )


def external_lines(numbers: Numbers) -> list[str]:
    """Winner and declared baseline on each external check."""
    opponent, metric = numbers["contrast"]["baseline"], "auroc"
    return [
        f"{split}, {count(numbers['patients'][split], 'patient')}, "
        f"look {numbers['external_looks'][split]}: {metric_name(metric)} "
        f"{interval(numbers['best'][split].get(metric))}; "
        f"{opponent} {interval(numbers['baselines'][opponent][split].get(metric))}"
        for split in externals(numbers)
    ]


# ---- honesty ------------------------------------------------------------------------------------


def seeds(numbers: Numbers) -> str:
    """``3 fresh seeds``."""
    return count(numbers["best"]["seeds"]["repeats"], "fresh seed")


def history(numbers: Numbers) -> str:
    """``11 complete, 20 pruned, 1 failed``: the trials by state."""
    told = [f"{count} {state}" for state, count in numbers["trials"].items() if count]
    return ", ".join(told) or "none"


def looks_lines(numbers: Numbers) -> list[str]:
    """Who else has looked at the test patients, as far as the ledger can tell."""
    looks, lines = numbers.get("looks", {}), []
    if numbers["look"] > 1:
        said = "other runs have looked at these test patients before"
        if looks.get("seen", 0) < looks.get("patients", 0):
            said = f"other runs have looked at {looks['seen']:,} of these test patients before"
        lines.append(said)
    if looks.get("unknown"):
        lines.append(
            f"of {count(looks['unknown'], 'earlier look')} entered with another key nobody can "
            "tell whether they were at these test patients"
        )
    if looks.get("note"):
        lines.append(
            "the ledger's key could not be kept: later runs will not know this look again"
        )
    return lines


def searched(numbers: Numbers) -> str:
    """``152 search patients``, or ``one fold or more of 511 patients in 5 folds``."""
    folds = numbers.get("inner", {}).get("folds")
    if folds:
        return f"one fold or more of {sum(folds):,} patients in {len(folds)} folds"
    return f"{numbers['patients']['search']:,} search patients"


def not_known(numbers: Numbers) -> list[str]:
    """What this run cannot say, as far as its own numbers show it."""
    lines = _groups_not_known(numbers["groups"])
    if not numbers["groups"]:
        lines.append("no patient groups were declared: nobody looked at differences between them")
    blunt = [label for label, value in numbers["thresholds"].items() if value is None]
    if blunt:
        lines.append(f"no threshold could be fitted on search: {', '.join(blunt)}")
    if numbers["contrast"]["adapter"] is None:
        lines.append("the declared contrast has no interval on these test patients")
    if numbers["contrast"]["recipe"] is None:
        lines.append("no interval of the recipe (it needs at least 3 fresh seeds)")
    if not externals(numbers):
        lines.append("other hospitals, scanners and populations than this data set's")
    return lines


def _groups_not_known(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Groups that are unknown, do not count, or are too small on test; each named once."""
    unknown: dict[str, int] = {}
    uncounted: dict[str, None] = {}
    small: dict[str, None] = {}
    for row in rows:
        attribute, group = _attribute(row), row["group"]
        if group == UNKNOWN:
            seen = row["positives"] + row["negatives"]
            unknown[attribute] = max(seen, unknown.get(attribute, 0))
        elif not row["counted"]:
            uncounted[group] = None
        elif row["auroc"] is None:
            small[f"{group} {row['text'].removeprefix('n/a ')}"] = None
    lines = [f"{a} is unknown for {count(n, 'test patient')}" for a, n in unknown.items()]
    if uncounted:
        lines.append(f"groups with too few search patients to count: {', '.join(uncounted)}")
    if small:
        lines.append(f"too few test patients to score: {', '.join(small)}")
    return lines


def count(number: int, what: str) -> str:
    """``1 look``, ``2 looks``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _attribute(row: Mapping[str, Any]) -> str:
    """``age`` of ``age:60``: without the cut."""
    return str(row["attribute"]).partition(":")[0]
