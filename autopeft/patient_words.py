"""What a result says about its patients, in plain words: gaps, decisions, calibration, shortcuts.

Every function reads ``result.json`` and gives lines; a run made before a number existed has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.words import Numbers, interval, number, percent

_MOST = 6  # lines of one kind; result.json has all


def gap_lines(numbers: Numbers) -> list[str]:
    """For each attribute: is there a gap, how large, and could these patients have shown it?"""
    found = numbers.get("fairness") or {}
    if not found:
        return []
    opponent = numbers["contrast"]["baseline"]
    theirs = {g["attribute"]: g for g in found["models"][opponent]["gaps"]}
    lines = []
    for gap in found["models"]["winner"]["gaps"]:
        other = theirs.get(gap["attribute"])
        against = "" if other is None else f"; {opponent} {other['text']}"
        lines.append(f"{_name(gap['attribute'])}: {gap['text']}{_size(gap)}{against}")
        if len(gap.get("labels", ())) > 1:
            widest = max(gap["labels"], key=lambda one: float(one["value"]))
            lines.append(
                f"{_name(gap['attribute'])}, the label with the largest gap: {widest['label']} "
                f"{interval(widest)}"
            )
    for bounds in found["models"]["winner"]["bounds"]:
        lines.append(
            f"{_name(bounds['attribute'])} is unknown for {percent(bounds['share'])} of the "
            f"patients: all of them in one group, its gap is {bounds['low']:.3f} to "
            f"{bounds['high']:.3f}; whoever they are, {bounds['least']:.3f} to "
            f"{bounds['most']:.3f}"
        )
    for one in found["models"]["winner"]["standardized"]:
        if one["gap"] is not None:
            held = " and ".join(_name(a) for a in one["by"])
            lines.append(
                f"{_name(one['attribute'])}, {held} and the findings held equal: "
                f"{one['gap']:.3f} instead of {one['raw_gap']:.3f} "
                f"(on {percent(one['kept'])} of the images)"
            )
    return lines


def _size(gap: Mapping[str, Any]) -> str:
    """The gap's size beside what it is without bias, its test, and what could have been seen."""
    mean = gap["mean"]
    if mean is None:
        return ""
    told = [f"AUROC {mean['value']:.3f}"]
    if mean["low"] is not None:
        told[0] += f" ({mean['low']:.3f} to {mean['high']:.3f})"
    if mean["expected"] is not None:
        told.append(f"about {mean['expected']:.3f} without any bias")
    if gap["p"] is not None:
        told.append(f"p {gap['p']:.3f}")
    if mean["detectable"] is not None:
        told.append(f"smallest detectable {mean['detectable']:.3f}")
    return f" ({', '.join(told)})"


def change_lines(numbers: Numbers) -> list[str]:
    """Winner minus opponent in each group and each label, bands that hold together."""
    opponent, lines = numbers["contrast"]["baseline"], []
    groups = (numbers.get("fairness") or {}).get("bands") or {}
    for kind, bands in (("group", groups), ("label", numbers.get("label_bands") or {})):
        known = {name: band for name, band in bands.items() if band is not None}
        if known:
            least = min(known, key=lambda name: float(known[name]["value"]))
            lines.append(
                f"winner minus {opponent}, the {kind} that gained least or lost most: {least} "
                f"{interval(known[least], signed=True)}, all {len(known)} {kind}s together"
            )
    return lines


def operating_lines(numbers: Numbers) -> list[str]:
    """Rates of the winner at the one threshold for everybody."""
    told = numbers["best"].get("operating")
    if not told:
        return []
    rates = ", ".join(f"{rate} {interval(told['rates'][rate])}" for rate in told["rates"])
    lines = [
        f"{rates} on test, at the threshold that found 90% of the positives on search; intervals "
        "with the threshold fitted again"
    ]
    rows = [
        row
        for row in numbers["groups"]
        if row["model"] == "winner" and row["counted"] and row["missed"] is not None
    ]
    several = len(numbers.get("thresholds") or ()) > 1
    worst = sorted(rows, key=lambda row: -float(row["missed"]))[: 2 * _MOST]
    told = [
        f"{row['group']}{' ' + row['label'] if several else ''} {percent(row['missed'])}"
        for row in (rows if len(rows) <= 2 * _MOST else worst)
    ]
    if told:
        some = "" if len(rows) <= 2 * _MOST else f", the {len(told)} largest of {len(rows)}"
        lines.append(f"missed findings, share of positive images{some}: {', '.join(told)}")
    lines += _alarms(numbers)
    odds = (numbers.get("fairness") or {}).get("models", {}).get("winner", {}).get("odds") or {}
    if odds.get("equalized_odds_difference") is not None:
        lines.append(
            "largest difference between groups: in sensitivity or false alarms "
            f"{number(odds['equalized_odds_difference'])} (equalized odds), in the share called "
            f"positive {number(odds.get('demographic_parity_difference'))}; chance alone makes "
            "both larger than 0"
        )
    return lines


def _alarms(numbers: Numbers) -> list[str]:
    """False alarms by group, of the attribute and label in which they differ most."""
    rows = (numbers.get("fairness") or {}).get("models", {}).get("winner", {}).get("rates") or []
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["false_alarms"] is not None:
            cells.setdefault((row["attribute"], row["label"]), []).append(row)

    def apart(cell: list[Mapping[str, Any]]) -> float:
        values = [float(row["false_alarms"]) for row in cell]
        return max(values) - min(values)

    if not cells:
        return []
    (attribute, label), cell = max(cells.items(), key=lambda item: apart(item[1]))
    several = len({label for _, label in cells}) > 1
    told = ", ".join(f"{row['group']} {percent(row['false_alarms'])}" for row in cell)
    some = " where they differ most" if len(cells) > 1 else ""
    return [
        f"false alarms, share of negative images{some}{f', {label}' if several else ''}: {told}"
    ]


def calibration_lines(numbers: Numbers) -> list[str]:
    """Slope and intercept, overall and of the group that is furthest from a slope of 1."""
    told = (numbers["best"].get("operating") or {}).get("calibration")
    if not told:
        return []
    whole = told["all"]
    lines = []
    for label, fit in list(whole["classes"].items())[:_MOST]:
        where = f"{label}: " if len(whole["classes"]) > 1 else ""
        lines.append(
            f"{where}slope {_short(fit['slope'])} (1 is right, below: too sure), intercept "
            f"{_short(fit['intercept'])} (0 is right)"
        )
    lines += _temperature_lines(numbers["best"])
    if whole["ece"] is not None:
        size = f"{whole['ece']:.3f}" if whole["ece"] > 0 else "not above what chance alone makes"
        lines.append(f"calibration error, mean over labels: {size}")
    slopes = [
        (f"{group} {label}" if len(table["classes"]) > 1 else group, fit["slope"])
        for group, table in told.items()
        if group != "all"
        for label, fit in table["classes"].items()
        if fit["slope"] is not None and fit["slope"]["enough"]
    ]
    if slopes:
        group, slope = max(slopes, key=lambda pair: abs(float(pair[1]["value"]) - 1))
        lines.append(
            f"slope furthest from 1 among {len(slopes)}: {group}, {_short(slope)}; the furthest "
            "of several lies far out by chance alone, and its interval does not allow for that"
        )
    return lines


def _temperature_lines(best: Mapping[str, Any]) -> list[str]:
    """What one temperature a label, fitted on search, makes of the winner's probabilities."""
    told = best["operating"]
    fitted = {c: t for c, t in told.get("temperature", {}).items() if t is not None}
    if not fitted:
        return []
    values = ", ".join(
        f"{c} {t:.2f}" if len(told["temperature"]) > 1 else f"{t:.2f}"
        for c, t in list(fitted.items())[:_MOST]
    )
    after = told["after_temperature"]
    (slopes, before), losses = (
        [
            [fit["slope"]["value"] for fit in table["all"]["classes"].values() if fit["slope"]]
            for table in (after["calibration"], told["calibration"])
        ],
        (told["log_loss"], after["log_loss"]),
    )
    line = f"divided by a temperature fitted on search ({values})"
    if slopes and before:
        mean, was = sum(slopes) / len(slopes), sum(before) / len(before)
        line += f": slope {was:.2f} -> {mean:.2f}"
    if None not in losses:
        line += f", log-loss {losses[0]:.3f} -> {losses[1]:.3f}"
    train = best["config"]["train"]
    if train["loss"] != "bce" or train["sampling"] != "plain":
        line += (
            "; the winner was trained with weights or other sampling, so that its plain "
            "probabilities do not have the prevalence of these patients, which a temperature "
            "does not mend"
        )
    return [line]


def contribution_lines(numbers: Numbers) -> list[str]:
    """What fine-tuning, sampling and loss of the winner add."""
    return [row["sentence"] for row in numbers.get("contributions") or ()]


def simple_lines(numbers: Numbers) -> list[str]:
    """What needs no fine-tuning reaches; a model has to be better than that to have learnt."""
    models = numbers.get("simple") or {}
    what = {
        "knn": "neighbors on frozen features",
        "demographics": "declared groups alone, no image",
        "thumbnail": "8 x 8 pixels",
    }
    return [
        f"{what.get(name, name)}: AUROC {interval(table['test'].get('auroc'))} on test, "
        f"winner minus it {interval(table['test'].get('difference'), signed=True)}"
        for name, table in models.items()
    ]


def shortcut_lines(numbers: Numbers) -> list[str]:
    """Does the score tell groups apart at equal labels?"""
    found = numbers.get("shortcuts") or {}
    rows = [row["sentence"] for name in ("winner", "features") for row in found.get(name, ())]
    return rows[: 2 * _MOST]


def memorization_lines(numbers: Numbers) -> list[str]:
    """What attacks tell of who was trained on."""
    found = numbers.get("memorization") or {}
    if not found:
        return []
    lines = [
        f"winner: {found['words']}; the search chose on these very patients, which makes the "
        "winner look better here: what its recipe's attacks say was not chosen on"
    ]
    for name, rows in found["models"].items():
        lines += [f"{name}, {_attack(row)}" for row in rows]
    for name, rows in found["recipes"].items():
        lines += [f"{name}'s recipe trained on half the patients, {_attack(row)}" for row in rows]
    for name, fitted in found.get("planted", {}).items():
        if fitted is not None and fitted["excess"] is not None:
            lines.append(
                f"{name}'s recipe trained with {fitted['planted']} labels made wrong on purpose: "
                f"it repeats {percent(fitted['share'])} of them, and "
                f"{percent(fitted['by_chance'])} of such labels of patients it was not trained on"
            )
    gap = found["generalization"].get("all")
    if gap:
        lines.append(
            f"winner's AUROC on patients it was trained on minus on others of the same split: "
            f"{interval(gap, signed=True)}"
        )
    return lines


def _attack(row: Mapping[str, Any]) -> str:
    return (
        f"{row['name']} attack: AUC {row['auc']:.3f}, minus the null's {row['null']:.3f} "
        f"{interval(row, signed=True)}; it finds "
        f"{percent(row['tpr'])} of the members at {percent(row['fpr'])} false alarms"
    )


def _short(value: Mapping[str, Any] | None) -> str:
    """``0.91 (0.82 to 1.00)``."""
    if value is None:
        return "n/a"
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _name(attribute: str) -> str:
    """``age`` of ``age:60``."""
    return attribute.partition(":")[0]
