"""Small SVG pictures: an axis, lines, words, and the frame around them.

No JavaScript, no network; colors come from the page where it sets ``--ink``, ``--muted``,
``--line``, ``--paper``, ``--one`` and ``--two``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from autopeft.files import write_text

WIDTH = 480  # user units; a phone shows it at three quarters
_STYLE = (
    ".ap text{font:13px system-ui,sans-serif;fill:var(--ink,#1b1f24)}"
    ".ap .bg{fill:var(--paper,#fff)}"
    ".ap text.mu{fill:var(--muted,#57606a)}"
    ".ap text.e{text-anchor:end}.ap text.c{text-anchor:middle}"
    ".ap .gr{stroke:var(--line,#d8dee4)}"
    ".ap .re{stroke:var(--muted,#57606a);stroke-dasharray:4 3}"
    ".ap .l1{stroke:var(--one,#0b62c4);stroke-width:2.5}"
    ".ap .l2{stroke:var(--two,#b3541e);stroke-width:1.5}"
    ".ap .p1{fill:var(--one,#0b62c4)}.ap .p2{fill:var(--two,#b3541e)}"
    ".ap .w{stroke:var(--one,#0b62c4);stroke-width:2.5;fill:none}"
    ".ap .o{stroke:var(--muted,#57606a);fill:none}"
)


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        title: what it shows, in a few words.
        svg: the picture as a standalone SVG text.
    """

    title: str
    svg: str

    def _repr_svg_(self) -> str:
        """Shows the figure in a notebook."""
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Writes an ``.svg`` file."""
        write_text(Path(path), self.svg)
        return Path(path)


@dataclass(frozen=True)
class Axis:
    """Values to user units, with round ticks."""

    at: Callable[[float], float]
    ticks: tuple[float, ...]
    form: Callable[[float], str]


def axis(values: Iterable[float], start: float, stop: float) -> Axis:
    """An axis that holds all values with a little air on both sides."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    air = 0.06 * (high - low) or 0.02 * abs(high) or 0.01
    low, high = low - air, high + air
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(i * step for i in range(first, math.floor(high / step + 1e-9) + 1))
    scale = (stop - start) / (high - low)
    return Axis(lambda v: start + (v - low) * scale, ticks, lambda v: f"{v:,.{digits}f}")


def grid(
    x: Axis | None,
    y: Axis,
    width: tuple[float, float],
    height: tuple[float, float],
    below: str,
    beside: str,
) -> list[str]:
    """Grid lines, tick labels and the names of both axes."""
    parts = []
    for t in x.ticks if x else ():
        assert x is not None
        parts.append(line(x.at(t), height[0], x.at(t), height[1], "gr"))
        parts.append(text(x.at(t), height[0] + 18, x.form(t), "c mu"))
    for t in y.ticks:
        parts.append(line(width[0], y.at(t), width[1], y.at(t), "gr"))
        parts.append(text(width[0] - 8, y.at(t) + 4, y.form(t), "e mu"))
    parts.append(text((width[0] + width[1]) / 2, height[0] + 40, below, "c"))
    middle = (height[0] + height[1]) / 2
    parts.append(f'<g transform="rotate(-90 16 {middle:.0f})">{text(16, middle, beside, "c")}</g>')
    return parts


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def text(x: float, y: float, words: str, kind: str = "", most: int = 60) -> str:
    """Escaped words; what is too long is cut and stays readable as a tooltip."""
    cut = words if len(words) <= most else words[: most - 1] + "…"
    full = f"<title>{escape(words)}</title>" if cut != words else ""
    mark = f' class="{kind}"' if kind else ""
    return f'<text{mark} x="{x:.1f}" y="{y:.1f}">{full}{escape(cut)}</text>'


def figure(title: str, told: str, height: float, parts: Iterable[str], kind: str) -> Figure:
    """Puts the parts into one accessible SVG."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ap {kind}" role="img" '
        f'aria-label="{escape(title)}. {escape(told)}" viewBox="0 0 {WIDTH} {height:.0f}">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc><style>{_STYLE}</style>"
        f'<rect class="bg" width="{WIDTH}" height="{height:.0f}"/>{"".join(parts)}</svg>'
    )
    return Figure(title, svg)
