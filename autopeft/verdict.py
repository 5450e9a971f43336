"""The declared contrast, what was kept and lost, and the verdict in fixed words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.answer import Answer
from autopeft.evaluation import Cost
from autopeft.metrics import METRICS
from autopeft.metrics.fairness import group_aurocs
from autopeft.metrics.gaps import holm
from autopeft.metrics.groups import unscored_groups
from autopeft.metrics.intervals import (
    Interval,
    Verdict,
    levelled_down,
    non_inferior,
    recipe_interval,
    verdict,
)
from autopeft.metrics.worst import Floor, worst_group_floor, worst_group_word
from autopeft.selection import compare, mean_value, repeats_of


def contrast_of(answer: Answer) -> dict[str, Any]:
    """The one declared contrast, and the same against every other baseline (descriptive)."""
    metric = answer.objective.primary
    test = {m.name: answer.scored[(m.name, 0, "test")] for m in answer.models}
    fallback = METRICS[metric](answer.audience.evaluation(test["winner"], Cost(0, 0))) is None
    metric = "auroc" if fallback else metric
    gap, floor, word = declared_word(answer, metric)
    if fallback:  # what was declared cannot be said; AUROC is shown in its place
        word = "cannot tell"
    seeds = {
        m.name: [answer.scored[(m.name, r, "test")] for r in answer.repeats]
        for m in (answer.winner, answer.opponent)
    }
    recipe = recipe_interval(
        seeds["winner"], seeds[answer.opponent.name], metric,
        counted=answer.audience.counted, labels=answer.audience.labels,
    )  # fmt: skip
    others = _others(answer, metric)
    return {
        "metric": metric,
        "declared_metric": answer.objective.primary,
        "split": "test",
        "baseline": answer.opponent.name,
        "same_candidate": _is_baseline(answer) == answer.opponent.name,
        "winner_is": _is_baseline(answer),
        "primary_undefined_on_test": fallback,
        "word": word,
        "worst_group": None if floor is None else vars(floor),
        "adapter": gap.to_dict() if gap else None,
        "recipe": recipe.to_dict() if recipe else None,
        "others": others,
    }


def declared_word(answer: Answer, metric: str) -> tuple[Interval | None, Floor | None, Verdict]:
    """Winner minus opponent on test, what the worst group adds to it, and the word for both."""
    test = [answer.scored[(name, 0, "test")] for name in ("winner", answer.opponent.name)]
    gap = compare(answer.audience, metric, test[:1], test[1:])
    word, floor = verdict(gap, answer.settings.margin), None
    if metric == "worst_group_auroc":
        floor = _worst_group_floor(answer)
        word = worst_group_word(word, floor, answer.settings.margin)
    return gap, floor, word


def _others(answer: Answer, metric: str) -> dict[str, dict[str, Any]]:
    """Winner minus each baseline on test; ``p_holm`` corrects for there being several."""
    mine = [answer.scored[("winner", 0, "test")]]
    found = {
        m.name: i
        for m in answer.baselines
        if (i := compare(answer.audience, metric, mine, [answer.scored[(m.name, 0, "test")]]))
    }
    raw = {name: _p(i) for name, i in found.items() if name != answer.opponent.name}
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    return {name: i.to_dict() | {"p_holm": adjusted.get(name)} for name, i in found.items()}


def _p(difference: Interval) -> float | None:
    """Two-sided, of no difference: a normal with the bootstrap's standard error."""
    if not difference.enough:
        return None
    if difference.se == 0:
        return 1.0 if difference.value == 0 else 0.0
    return math.erfc(abs(difference.value) / difference.se / math.sqrt(2))


def _is_baseline(answer: Answer) -> str:
    """The baseline that the winner is, word for word; empty where it is another candidate."""
    mine = answer.picked.candidate.fingerprint
    same = [m.name for m in answer.baselines if m.candidate.fingerprint == mine]
    return answer.opponent.name if answer.opponent.name in same else next(iter(same), "")


def _worst_group_floor(answer: Answer) -> Floor | None:
    """Every group of the winner against the opponent's worst one, which test does not name.

    ``confirm`` names it, or ``search`` where ``confirm`` has too few patients to score groups.
    """
    audience, opponent = answer.audience, answer.opponent.name
    search = [answer.scored[(opponent, 0, "search")]]
    for named in (repeats_of(answer.confirm, opponent, answer.repeats), search):
        sums: dict[str, float] = {}
        for p in named:
            for attribute, groups in audience.counted.items():
                kept = (audience.labels or {}).get(attribute)
                for group, value in group_aurocs(p, attribute, groups, kept).items():
                    if value is not None:
                        sums[group] = sums.get(group, 0.0) + value
        if sums:
            test = [answer.scored[(name, 0, "test")] for name in ("winner", opponent)]
            against = min(sums, key=sums.__getitem__)
            return worst_group_floor(test[0], test[1], against, audience.counted, audience.labels)
    return None


def accuracy_kept(answer: Answer) -> dict[str, Any]:
    """Non-inferiority of plain AUROC on ``confirm`` against the strongest baseline there.

    The winner was chosen on the same patients; ``test`` holds the same difference where nothing
    was chosen. It describes: the rule is the one declared, on ``confirm``.
    """
    audience, repeats = answer.audience, answer.repeats
    mine_is = answer.picked.candidate.fingerprint
    others = [m for m in answer.baselines if m.candidate.fingerprint != mine_is]
    by_name = {m.name: repeats_of(answer.confirm, m.name, repeats) for m in others}
    best = max(by_name, key=lambda name: mean_value(audience, "auroc", by_name[name]))
    mine = repeats_of(answer.confirm, answer.picked.name, repeats)
    on_test = [[answer.scored[(n, r, "test")] for r in repeats] for n in ("winner", best)]
    margin = answer.settings.margin
    return {
        **_non_inferiority(compare(audience, "auroc", mine, by_name[best]), margin),
        "baseline": best,
        "margin": margin,
        "repeats": len(repeats),
        "test": _non_inferiority(compare(audience, "auroc", on_test[0], on_test[1]), margin),
    }


def _non_inferiority(gap: Interval | None, margin: float) -> dict[str, Any]:
    return {
        "kept": non_inferior(gap, margin),
        "difference": gap.to_dict() if gap else None,
        "floor": gap.floor if gap else None,
    }


def lost_groups(answer: Answer) -> tuple[str, ...]:
    """Counted groups that lost more than the margin on test, beyond doubt."""
    mine, theirs = (answer.scored[(n, 0, "test")] for n in ("winner", answer.opponent.name))
    gaps: dict[str, Interval | None] = {}
    for groups in answer.audience.counted.values():
        for group in groups:
            gaps[group] = compare(answer.audience, f"auroc:{group}", [mine], [theirs])
    return levelled_down(gaps, answer.settings.margin)


_BY_REPLAY = "finalists ranked by replay on search patients, confirm has too few to rank them"


def sentence(
    answer: Answer, contrast: Mapping[str, Any], kept: Mapping[str, Any], lost: Sequence[str]
) -> str:
    """The verdict in fixed words; it follows the protocol mechanically."""
    metric = contrast["declared_metric"].replace("_", " ").replace("auroc", "AUROC")
    name = contrast["baseline"]
    if contrast["same_candidate"]:
        poor = "" if answer.feasible else " No trial met the constraints on search."
        said = f" {_BY_REPLAY[0].upper()}{_BY_REPLAY[1:]}." if answer.won.ranked_by_replay else ""
        return f"Searching did not help: the winner is the baseline {name}.{poor}{said}"
    useless = ": searching did not help"
    if contrast["winner_is"]:
        name = f"{name} (the winner is itself the baseline {contrast['winner_is']}{useless})"
        useless = ""
    word = {
        "better": f"Better than {name} in {metric}",
        "not worse": f"Not worse than {name} in {metric} by more than the margin; "
        "not shown to be better",
        "worse": f"Worse than {name} in {metric}{useless}",
        "cannot tell": f"Cannot tell the winner from {name} in {metric}",
    }[contrast["word"]]
    if contrast["word"] == "not worse" and contrast["adapter"]["high"] < 0:
        word = f"Worse than {name} in {metric}, by less than the margin{useless}"
    if contrast["primary_undefined_on_test"]:
        word = f"Cannot tell the winner from {name}: {metric} is undefined on the test patients"
    elif contrast["baseline"] == "linear_probe" and contrast["word"] not in ("better", "worse"):
        word += " (a linear probe may be enough)"
    parts = [word]
    if answer.objective.constraints:
        said = "overall accuracy kept" if kept["kept"] else "not shown to keep accuracy"
        parts.append(f"{said} (margin {answer.settings.margin:g})")
    if not answer.feasible:
        parts.append("no trial met the constraints on search")
    lost_ranking = answer.won.ranked_by_replay
    if lost_ranking:
        parts.append(_BY_REPLAY)
    for split in ("test",) if lost_ranking else ("confirm", "test"):
        silent = _unscored(answer, split)
        if silent and _needs_groups(contrast):
            names = ", ".join(silent)
            parts.append(f"not in the worst group, too few {split} patients: {names}")
    aside = [t.name for t in answer.objective.terms if t.name not in ("auroc", answer.metric)]
    if aside and not lost_ranking:
        said = ", ".join(name.replace("_", " ").replace("auroc", "AUROC") for name in aside)
        parts.append(f"{said} took part in choosing finalists, not the winner among them")
    if lost:
        parts.append(f"levelled down: {', '.join(lost)} lost more than the margin")
    return "; ".join(parts) + "."


def _needs_groups(contrast: Mapping[str, Any]) -> bool:
    return "groups" in METRICS[contrast["declared_metric"]].needs


def _unscored(answer: Answer, split: str) -> tuple[str, ...]:
    """Counted groups with too few patients to be scored: the worst group leaves them out."""
    winner = answer.scored[("winner", 0, split)]
    return unscored_groups(winner, answer.audience.counted, answer.audience.labels)
