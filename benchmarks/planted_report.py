"""Tables and pictures of planted.py, from what lies in its folder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import planted_data as data
import planted_pool
from planted_coverage import COVERAGE, ESTIMATES
from planted_memory import ALARM, MEMORY, RECIPES, memory_file, read
from planted_pool import DESIGNS, Design
from scipy.special import stdtrit

from autopeft.drawing import WIDTH, axis, figure, grid, line, text
from autopeft.files import write_text

MARGIN = 0.01
MEMORY_EPOCHS = (12, 4)
RULES = ("auroc", "worst_group", "fairness")
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


@dataclass(frozen=True)
class Seed:
    """One seed of a pool.

    Attributes:
        number: of the seed.
        picks: rule -> candidate.
        fresh: candidate -> its truth.
        search: candidate -> its values on search.
        follows: candidate -> how far it follows the mark.
    """

    number: int
    picks: Mapping[str, str]
    fresh: Mapping[str, data.Values]
    search: Mapping[str, data.Values]
    follows: Mapping[str, float]

    def gain(self, rule: str, what: str = "worst", against: str = "auroc") -> float:
        """True value of one rule's pick minus that of another's: ``worst``, ``auroc``, a group."""
        mine, other = (self.fresh[self.picks[r]] for r in (rule, against))
        return _of(mine, what) - _of(other, what)


def _of(v: data.Values, what: str) -> float:
    return v.groups[what] if what in v.groups else float(getattr(v, what))


@dataclass(frozen=True)
class Mean:
    """Mean of some seeds with its t interval."""

    value: float
    se: float
    low: float
    high: float
    floor: float
    count: int

    @staticmethod
    def of(found: Iterable[float]) -> Mean:
        """95%, two-sided; ``floor`` is one-sided."""
        x = np.array([v for v in found if np.isfinite(v)])
        n = len(x)
        if n < 2:
            return Mean(float(x.mean()) if n else np.nan, np.nan, np.nan, np.nan, np.nan, n)
        mean, se = float(x.mean()), float(x.std(ddof=1) / np.sqrt(n))
        wide, one_sided = (float(stdtrit(n - 1, q)) for q in (0.975, 0.95))
        return Mean(mean, se, mean - wide * se, mean + wide * se, mean - one_sided * se, n)

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.value:+.4f}"
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


# ---- pool ---------------------------------------------------------------------------------------


def seeds_of(out: Path, kind: str) -> list[Seed]:
    """All finished seeds of a pool."""
    design = DESIGNS[kind]
    done = sorted(p.parent for p in (out / kind).glob("*/done"))
    if not done:
        return []
    size = design.size
    rows = data.films(out, data.phantom(data.FRESH_SEED, size.fresh, design.shortcut, size)).rows()
    return [_seed(out, folder, design, rows) for folder in done]


def _seed(out: Path, folder: Path, design: Design, fresh: data.Rows) -> Seed:
    number, size = int(folder.name), design.size
    found = data.films(out, data.phantom(number, size.train + size.search, design.shortcut, size))
    rows, mark = found.rows(slice(size.train, None)), np.load(folder / "mark.npy")
    assert rows.label is not None
    picks = planted_pool.picks(folder, design, rows)
    known = planted_pool.scored(folder, design, rows)
    truth = {
        name: data.values(data.predictions(planted_pool.fresh_scores(folder, name), fresh))
        for name in set(picks.values())
    }
    label = rows.label[:, 0]
    follows = {n: data.follows(p.score[:, 0], mark, label) for n, (p, _) in known.items()}
    return Seed(number, picks, truth, {n: data.values(p) for n, (p, _) in known.items()}, follows)


def pool_lines(found: Sequence[Seed]) -> Iterator[str]:
    """Picks by seed, what they differ by, and the candidates."""
    heads = ("AUROC", "worst group")
    names = [h for rule in ("auroc", "worst_group") for h in (f"`{rule}` picks", *heads)]
    yield f"| seed | {' | '.join(names)} | gain |"
    yield "|---" * 8 + "|"
    for s in found:
        cells = []
        for rule in ("auroc", "worst_group"):
            v = s.fresh[s.picks[rule]]
            cells += [s.picks[rule], f"{v.auroc:.3f}", f"{v.worst:.3f} ({v.worst_name})"]
        yield f"| {s.number} | {' | '.join(cells)} | {s.gain('worst_group'):+.3f} |"
    yield ""
    groups = "women | men | under 60 | 60 and over"
    yield f"| true difference (95%, t) | worst group | AUROC | {groups} | better/equal/worse |"
    yield "|---" * 8 + "|"
    for rule in ("worst_group", "fairness"):
        cells = [str(Mean.of(s.gain(rule, w) for s in found)) for w in ("worst", "auroc")]
        cells += [f"{Mean.of(s.gain(rule, g) for s in found).value:+.4f}" for g in data.GROUPS]
        gains = [s.gain(rule) for s in found]
        count = "/".join(str(sum(c)) for c in _signs(gains))
        yield f"| `{rule}` minus `auroc` | {' | '.join(cells)} | {count} |"
    yield ""
    for rule in ("worst_group", "fairness"):
        m = Mean.of(s.gain(rule) for s in found)
        lost = sum(s.gain(rule) < -MARGIN for s in found)
        yield (
            f"- levelling down, `{rule}`: worst group lower by more than {MARGIN} in {lost} of "
            f"{len(found)} seeds; one-sided 95% lower bound of the mean {m.floor:+.4f}"
        )
    same = sum(s.picks["auroc"] == s.picks["worst_group"] for s in found)
    yield f"- `auroc` and `worst_group` pick the same candidate in {same} of {len(found)} seeds"
    ranks = [_rank_correlation(list(s.search.values())) for s in found]
    yield f"- rank correlation of AUROC and worst group over the candidates: {np.mean(ranks):.2f}"
    for rule in RULES:
        what = "auroc" if rule == "auroc" else "worst"
        high = [
            _of(s.search[s.picks[rule]], what) - _of(s.fresh[s.picks[rule]], what) for s in found
        ]
        yield f"- search minus truth of `{rule}`'s pick, {what}: {Mean.of(high)}"


def _rank_correlation(found: Sequence[data.Values]) -> float:
    """Spearman's, between AUROC and the worst group's."""
    pair = [[v.auroc for v in found], [v.worst for v in found]]
    return float(np.corrcoef(np.argsort(np.argsort(pair, axis=1), axis=1))[0, 1])


def _signs(gains: Sequence[float]) -> tuple[list[bool], list[bool], list[bool]]:
    return [g > 0 for g in gains], [g == 0 for g in gains], [g < 0 for g in gains]


def candidate_lines(found: Sequence[Seed]) -> Iterator[str]:
    """Each candidate's mean over the seeds on search, unchosen, so without optimism."""
    groups = "women | men | under 60 | 60 and over"
    yield f"| candidate | AUROC | {groups} | follows the mark | picked |"
    yield "|---" * 8 + "|"
    picked = {rule: Counter(s.picks[rule] for s in found) for rule in RULES}
    for name in found[0].search:
        values = [s.search[name] for s in found]
        cells = [np.mean([v.auroc for v in values])]
        cells += [np.mean([v.groups[g] for v in values]) for g in data.GROUPS]
        cells.append(np.mean([s.follows[name] for s in found]))
        times = ", ".join(f"{rule} {picked[rule][name]}" for rule in RULES if picked[rule][name])
        yield f"| {name} | {' | '.join(f'{c:.3f}' for c in cells)} | {times} |"


def pool_picture(found: Sequence[Seed], title: str) -> str:
    """True worst group of both picks, seed by seed."""
    pairs = [
        (s.fresh[s.picks["auroc"]].worst, s.fresh[s.picks["worst_group"]].worst) for s in found
    ]
    top, bottom, left = 40.0, 250.0, 70.0
    y = axis([v for pair in pairs for v in pair], bottom, top)
    parts = grid(None, y, (left, WIDTH - 20), (bottom, top), "seed", "worst group, 20,000 fresh")
    step = (WIDTH - 20 - left) / len(pairs)
    for number, (s, (plain, fair)) in enumerate(zip(found, pairs, strict=True)):
        x = left + step * (number + 0.5)
        parts.append(line(x, y.at(plain), x, y.at(fair), "gr"))
        parts.append(f'<circle class="p2" cx="{x:.1f}" cy="{y.at(plain):.1f}" r="4"/>')
        parts.append(f'<circle class="p1" cx="{x:.1f}" cy="{y.at(fair):.1f}" r="4"/>')
        parts.append(text(x, bottom + 18, str(s.number), "c mu"))
    parts.append(text(left, 22, "picked by: worst group (blue), AUROC (orange)"))
    told = "True AUROC of the worst group, by what picked the candidate."
    return figure(title, told, bottom + 54, parts, "planted").svg


# ---- memory and alarm ---------------------------------------------------------------------------


def memory_lines(lines: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Attack minus null by capacity and copies; the loss attack, mean of the seeds."""
    table: dict[tuple[str, str], dict[str, Mapping[str, str]]] = defaultdict(dict)
    for cell in lines:
        if cell["attack"] == "loss":
            table[cell["recipe"], cell["members"]][cell["seed"]] = cell
    kinds = ("1 x", "2 x", "4 x", "as in a run")
    yield f"| recipe | {' | '.join(kinds)} | 4 x minus 1 x | null as in a run | seeds |"
    yield "|---" * 8 + "|"
    for recipe in RECIPES:
        by_kind = {k: table[recipe, k] for k in kinds}
        if not all(by_kind.values()):
            continue
        cells = [str(Mean.of(float(c["value"]) for c in by_kind[k].values())) for k in kinds]
        both = by_kind["1 x"].keys() & by_kind["4 x"].keys()
        rise = [
            float(by_kind["4 x"][s]["value"]) - float(by_kind["1 x"][s]["value"])
            for s in sorted(both)
        ]
        null = Mean.of(float(c["null"]) for c in by_kind["as in a run"].values()).value
        told = f"{Mean.of(rise)} | {null:.3f} | {len(rise)}"
        yield f"| {recipe} | {' | '.join(cells)} | {told} |"


def alarm_lines(lines: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """How often an attack is said to have succeeded where nothing was memorized."""
    table: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for cell in lines:
        table[cell["model"], cell["attack"]].append(cell)
    yield "| model | attack | tables | AUC | null | minus null (95%, t) | above 0 | below 0 |"
    yield "|---" * 8 + "|"
    for (model, attack), cells in table.items():
        value = Mean.of(float(c["value"]) for c in cells)
        auc, null = (np.mean([float(c[k]) for c in cells]) for k in ("auc", "null"))
        above = np.mean([float(c["low"]) > 0 for c in cells])
        below = np.mean([float(c["high"]) < 0 for c in cells])
        told = f"{auc:.3f} | {null:.3f} | {value} | {above:.1%} | {below:.1%}"
        yield f"| {model} | {attack} | {len(cells)} | {told} |"


# ---- coverage -----------------------------------------------------------------------------------


def coverage_lines(lines: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """How often each interval holds the truth, and how far off its value is."""
    table: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for cell in lines:
        table[cell["metric"], cell["estimate"]].append(cell)
    yield "| chosen by | interval | runs | holds the truth | of 95% | value minus truth | width |"
    yield "|---" * 7 + "|"
    for metric in ("auroc", "worst_group_auroc"):
        for estimate in ESTIMATES:
            cells = [c for c in table[metric, estimate] if c["value"]]
            if not cells:
                continue
            value, low, high, truth = (
                np.array([float(c[k]) for c in cells]) for k in ("value", "low", "high", "truth")
            )
            inside = float(((low <= truth) & (truth <= high)).mean())
            yield (
                f"| {metric} | {estimate} | {len(cells)} | {inside:.1%} "
                f"| {_share_interval(inside, len(cells))} | {Mean.of(value - truth)} "
                f"| {(high - low).mean():.3f} |"
            )


def _share_interval(share: float, n: int) -> str:
    """Wilson's interval of a share."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return f"{middle - half:.1%} to {middle + half:.1%}"


# ---- all ----------------------------------------------------------------------------------------


def report(out: Path, docs: Path | None) -> None:
    """Prints every table that there is something for.

    Args:
        out: the folder of everything.
        docs: if given, the tables go into its ``planted.md`` too, and the pictures beside it.
    """
    parts: list[str] = []
    for kind in DESIGNS:
        found = seeds_of(out, kind)
        if found:
            title = f"Pool {kind}: {len(found)} seeds"
            lines = [*pool_lines(found), "", *candidate_lines(found)]
            if docs and len(found) > 1:
                file = f"planted_{kind.replace('-', '_')}.svg"
                write_text(docs / file, pool_picture(found, f"Pool {kind}") + "\n")
                lines += ["", f"![True worst group by seed]({file})"]
            parts.append(_section(title, lines))
    rest = (
        *(
            (f"Memorization, {n} epochs", memory_lines(read(memory_file(out, n), MEMORY)))
            for n in MEMORY_EPOCHS
        ),
        ("Alarms where nothing was memorized", alarm_lines(read(out / "alarm.csv", ALARM))),
        ("Coverage", coverage_lines(read(out / "coverage.csv", COVERAGE))),
    )
    parts += [_section(title, list(lines)) for title, lines in rest]
    text = "\n".join(parts)
    print(text)
    if docs:
        page = docs / "planted.md"
        before, _, tail = page.read_text().partition(BEGIN)
        after = tail.partition(END)[2]
        write_text(page, f"{before}{BEGIN}\n{text}{END}{after}")


def _section(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n"
