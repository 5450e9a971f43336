"""What one training step costs, against placement depth, images a step and image size.

    python benchmarks/step_cost.py docs          # the backbone in the package
    python benchmarks/step_cost.py docs --backbone vit_small_patch14_dinov2 --weights FILE

LoRA r=8 on all four linear layers of the blocks from ``first`` to the last, AdamW included, on
random films in bf16, with and without the prefix store. All points of one picture take turns;
medians. Writes ``step_depth.svg``, ``step_images.svg``, ``step_size.svg``; prints the tables.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
from inner import Net, Step, ours

from autopeft.drawing import WIDTH, axis, figure, grid, line, text
from autopeft.training.allocator import keep_memory

Curves = Mapping[str, Sequence[tuple[float, float]]]


def step(net: Net, first: int, images: int, cached: bool) -> Step:
    """A step of LoRA on the blocks from ``first`` on."""
    facts = net.network.facts
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, facts.image_size, facts.image_size, generator=generator)
    y = (torch.rand(images, 1, generator=generator) > 0.5).float()
    raw = {
        "method": "lora", "r": 8, "modules": "all", "lr": 1e-4,
        "blocks": [first, facts.depth - 1],
    }  # fmt: skip
    return ours(net, raw, x, y, first if cached else 0)


def medians(
    steps: Mapping[tuple[str, float], Step], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each point; all take turns, the first round warms up."""
    seconds: dict[tuple[str, float], list[float]] = {k: [] for k in steps}
    for number in range(rounds + 1):
        for key, run in steps.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[key].append(time.perf_counter() - began)
    curves: dict[str, list[tuple[float, float]]] = {}
    for (name, at), found in seconds.items():
        curves.setdefault(name, []).append((at, 1000 * statistics.median(found)))
    return curves


def picture(title: str, below: str, curves: Curves, told: str) -> str:
    """Two curves as an SVG text."""
    height, width = (330.0, 50.0), (70.0, WIDTH - 20.0)
    points = [p for c in curves.values() for p in c]
    x = axis([p[0] for p in points], *width)
    y = axis([0.0, *(p[1] for p in points)], *height)
    parts = [text(20, 24, title), *grid(x, y, width, height, below, "milliseconds a step")]
    for number, (name, curve) in enumerate(curves.items(), 1):
        for (x1, y1), (x2, y2) in zip(curve, curve[1:], strict=False):
            parts.append(line(x.at(x1), y.at(y1), x.at(x2), y.at(y2), f"l{number}"))
        end = curve[-1] if curve[-1][1] >= curve[0][1] else curve[0]
        kind = "e" if end == curve[-1] else ""
        parts.append(text(x.at(end[0]), y.at(end[1]) - 8, name, kind))
    return figure(title, told, height[0] + 54, parts, "steps").svg


def main() -> None:
    """Measures, draws, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="autopeft_vit_nano")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--sizes", type=int, nargs="+", default=[56, 84, 112, 168, 224])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        net = Net(args, Path(folder) / "a", 64)
        depth = net.network.facts.depth
        by_depth = {("from pixels", f): step(net, f, 32, False) for f in range(depth)}
        by_depth |= {("cached", f): step(net, f, 32, True) for f in range(1, depth)}
        counts, half = (8, 16, 32, 48, 64), depth // 2
        by_images = {("all blocks", n): step(net, 0, n, False) for n in counts}
        by_images |= {("upper half, cached", n): step(net, half, n, True) for n in counts}
        by_size = {}
        for size in args.sizes:
            other = Net(
                argparse.Namespace(**{**vars(args), "image_size": size}), Path(folder) / str(size)
            )
            by_size["all blocks", size] = step(other, 0, 32, False)
            by_size["upper half, cached", size] = step(other, half, 32, True)
        load = os.getloadavg()[0]
        told = f"{args.backbone}, {args.threads} threads, load {load:.1f}, {date.today()}"
        jobs = (
            ("depth", "first adapted block", by_depth, "Cost of a step by depth, batch 32"),
            ("images", "images a step", by_images, "Cost of a step by number of images"),
            ("size", "image size in pixels", by_size, "Cost of a step by image size, batch 32"),
        )
        for name, below, steps, title in jobs:
            curves = medians(steps, args.rounds)
            (args.out / f"step_{name}.svg").write_text(picture(title, below, curves, told) + "\n")
            print(f"\n{title}; {told}\n\n| {below} | {' | '.join(curves)} |")
            print("|" + "---|" * (1 + len(curves)))
            for at in sorted({p[0] for c in curves.values() for p in c}):
                cells = [f"{v:.0f} ms" if (v := dict(c).get(at)) else "" for c in curves.values()]
                print(f"| {at:g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
