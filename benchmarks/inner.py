"""How fast is one training step, beside what a user would write and beside the floor?

    python benchmarks/inner.py                               # the backbone in the package
    python benchmarks/inner.py --backbone vit_small_patch14_dinov2 --weights FILE --image-size 112

All variants train the same candidate (LoRA r=8 on all four linear layers, batch 32) on the same
random films and take turns, so that a busy machine is busy for all of them; medians, with the
range of the middle half. ``plain`` is timm + ``get_peft_model`` + AdamW, in fp32 or under
autocast. The floor of a variant is the cost of its matrix products alone, counted in forward
passes of the frozen network at bf16 speed, measured in the same run: with blocks k..L adapted, a
share s = (L - k) / L of the network goes forward and, at the same cost, back (nothing is computed
for frozen weights); what lies below is read from the prefix store, or costs 1 - s without it.
With ``--allocator kept``, as in a worker, the process keeps freed memory in large pages; plain
peft runs in the same process and has it too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from autopeft.backbones.weights import load_backbone
from autopeft.methods import build, canonical
from autopeft.methods.scored import ToyScoring, has_scored, look
from autopeft.training.allocator import keep_memory
from autopeft.training.fast import Casts, quick_frozen, speed_up
from autopeft.training.prefix import PrefixStore

BATCH = 32
Step = Callable[[], None]


def plain_peft(args: argparse.Namespace, x: torch.Tensor, y: torch.Tensor, low: bool) -> Step:
    """What a user would write: all of it in the graph, weights cast again at each step."""
    made = timm.create_model(args.backbone, **_pretrained(args), num_classes=1)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=r".*\.(qkv|proj|fc1|fc2)", modules_to_save=["head"]
    )
    model = get_peft_model(made.train(), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    return _stepper(lambda: model(x), trained, y, _autocast(low), fused=False)


def ours(net: Any, raw: dict[str, Any], x: torch.Tensor, y: torch.Tensor, start: int = 0) -> Step:
    """autopeft's step in bf16; ``start`` = the boundary whose states are cached."""
    candidate, fixed = canonical(raw, net.network.facts), None
    if has_scored(candidate):
        zeros = torch.zeros(len(x), dtype=torch.long)
        fixed = look(candidate, ToyScoring(net.network, candidate, x, zeros, 1))
    adapted = build(net.network, candidate, 1, 0, 0, fixed)
    speed_up(adapted, "bf16", net.casts)
    adapted.set_train(True)
    given = net.cached(x, start)
    trained = list(adapted.trainable.values())
    logits = lambda: adapted.logits(given(), start)  # noqa: E731
    return _stepper(logits, trained, y, _autocast(True), fused=True)


class Net:
    """The resident network, its casts and its prefix store."""

    def __init__(self, args: argparse.Namespace, folder: Path, images: int = BATCH) -> None:
        self.network = load_backbone(args.backbone, args.weights, args.image_size, True)
        self.casts = Casts(self.network.model)
        self.frozen = quick_frozen(self.network, "bf16", self.casts)
        self.store = PrefixStore(folder, 10**9, "inner", np.arange(images))

    def cached(self, x: torch.Tensor, start: int) -> Callable[[], torch.Tensor]:
        """Pixels, or the store's states of them: read anew at each step, as in training."""
        if not start:
            return lambda: x
        index, view = np.arange(len(x)), np.zeros(len(x), np.int64)

        def compute(rows: Any, views: Any) -> torch.Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                return self.frozen.advance(0, x[torch.from_numpy(rows)], start)

        return lambda: self.store.states(start, index, view, compute)

    def forward(self, x: torch.Tensor, low: bool) -> Step:
        """One frozen forward pass of all blocks, the unit of the floor."""
        network = self.frozen if low else self.network

        def run() -> None:
            with torch.inference_mode(), _autocast(low)():
                network.advance(0, x, network.depth)

        return run


def _pretrained(args: argparse.Namespace) -> dict[str, Any]:
    if args.weights is None:
        return {"pretrained": True, "img_size": args.image_size}
    overlay = {"file": args.weights}
    return {"pretrained": True, "img_size": args.image_size, "pretrained_cfg_overlay": overlay}


def _autocast(low: bool) -> Callable[[], AbstractContextManager[Any]]:
    return (lambda: torch.autocast("cpu", torch.bfloat16)) if low else nullcontext


def _stepper(
    logits: Callable[[], torch.Tensor],
    trained: list[torch.nn.Parameter],
    y: torch.Tensor,
    context: Callable[[], AbstractContextManager[Any]],
    fused: bool,
) -> Step:
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=fused)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with context():
            scores = logits()
        functional.binary_cross_entropy_with_logits(scores.float(), y).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return step


def variants(args: argparse.Namespace, net: Net) -> dict[str, tuple[Step, float | None]]:
    """Name -> (step, its floor in forward passes; None = no matrix products to speak of)."""
    facts, size = net.network.facts, net.network.facts.image_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, size, size, generator=generator)
    y = (torch.rand(BATCH, 1, generator=generator) > 0.5).float()
    depth = facts.depth
    lora = {"method": "lora", "r": 8, "lora_alpha": 16, "modules": "all", "lr": 1e-4}
    found: dict[str, tuple[Step, float | None]] = {
        "frozen forward, fp32": (net.forward(x, False), None),
        "frozen forward, bf16": (net.forward(x, True), None),
        "plain peft, fp32": (plain_peft(args, x, y, False), 2.0),
        "plain peft, autocast": (plain_peft(args, x, y, True), 2.0),
        "LoRA, all blocks": (ours(net, {**lora, "blocks": "all"}, x, y), 2.0),
    }
    for first in (depth // 2, depth * 3 // 4, depth - 1):
        raw, share = {**lora, "blocks": [first, depth - 1]}, (depth - first) / depth
        name = f"LoRA, blocks {first}-{depth - 1}"
        found[name] = (ours(net, raw, x, y), 1 + share)
        found[f"{name}, cached"] = (ours(net, raw, x, y, first), 2 * share)
    # A head alone, trained by steps: the network goes forward and nothing goes back through it.
    head = {"method": "linear_probe", "optimizer": "adamw", "lr": 1e-3}
    found["head only"] = (ours(net, head, x, y), 1.0)
    found["head only, cached"] = (ours(net, head, x, y, depth), None)
    # The floor of the others: what trains in the weights costs their gradient too (3), prompts
    # lengthen each row.
    prompts = 10 / (1 + facts.shapes[0][0])
    others = {
        "bitfit": ({}, 2.0), "ssf": ({}, 2.0), "adapter_pfeiffer": ({}, 2.0),
        "vpt_deep": ({"p": 10}, 2.0 * (1 + prompts)), "large_weight": ({}, 3.0),
        "full": ({}, 3.0),
    }  # fmt: skip
    for name, (more, floor) in others.items():
        raw = {"method": name, "blocks": "all", "lr": 1e-5, **more}
        found[f"{name}, all blocks"] = (ours(net, raw, x, y), floor)
    return found


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step; all of them take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
        print(f"\rround {number} of {rounds}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return seconds


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="autopeft_vit_nano")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--allocator", choices=("kept", "plain"), default="kept")
    args = parser.parse_args()
    if args.allocator == "kept":
        keep_memory()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        net = Net(args, Path(folder))
        made = variants(args, net)
        seconds = measure({n: step for n, (step, _) in made.items()}, args.rounds)
    unit = statistics.median(seconds["frozen forward, bf16"])
    base = statistics.median(seconds["plain peft, fp32"])
    print(f"{args.backbone} at {args.image_size} px, batch {BATCH}, {args.threads} threads, ")
    print(f"allocator {args.allocator}, load {os.getloadavg()[0]:.1f}, ")
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {date.today()}"
    )
    print("\n| variant | images/s | middle half | of plain fp32 | of its floor |")
    print("|---|---|---|---|---|")
    for name, (_, floor) in made.items():
        low, middle, high = statistics.quantiles(seconds[name], n=4)
        slower = f"{middle / (floor * unit):.2f}x slower" if floor else ""
        print(
            f"| {name} | {BATCH / middle:.0f} | {BATCH / high:.0f} to {BATCH / low:.0f} "
            f"| {base / middle:.2f}x | {slower} |"
        )


if __name__ == "__main__":
    main()
