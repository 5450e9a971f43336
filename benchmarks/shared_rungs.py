"""With a new view of each film in each epoch (``--views 0``), would waiting rungs pay as a group?

    python benchmarks/shared_rungs.py                        # the backbone in the package
    python benchmarks/shared_rungs.py --backbone vit_small_patch14_dinov2 --weights FILE

Nothing can be read from the prefix store then: each training decodes, augments and runs the frozen
blocks below its adapter for itself. Trainings of one repeat see the same views in the same order,
so one worker could do that once for several of them. Timed here are batches of 32 through LoRA
r=8 on the last blocks: ``alone`` all of it for each training, ``shared`` the views and the frozen
blocks once for the group, ``cached`` what the default (``--views 4``) costs once its states are in
the store. All variants take turns; medians.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inner import BATCH, Net, Step, _autocast, _stepper, measure, ours

from autopeft.methods import build, canonical
from autopeft.training.allocator import keep_memory
from autopeft.training.augment import augment
from autopeft.training.fast import speed_up

GROUPS = (2, 3)
LORA = {"method": "lora", "r": 8, "lora_alpha": 16, "modules": "all", "lr": 1e-4}


class Films:
    """Random films, augmented anew each time as a worker does it."""

    def __init__(self, net: Net) -> None:
        size, generator = net.network.facts.image_size, torch.Generator().manual_seed(0)
        self.raw = torch.randint(0, 256, (BATCH, 1, size, size), generator=generator).float()
        self.y = (torch.rand(BATCH, 1, generator=generator) > 0.5).float()
        self.view = np.arange(BATCH) * 1000

    def fresh(self) -> torch.Tensor:
        """The next view of each."""
        self.view = self.view + 1
        return augment(self.raw, np.arange(BATCH), self.view).div(255).expand(-1, 3, -1, -1) - 0.5


def trainings(net: Net, films: Films, first: int, count: int) -> tuple[Any, list[Step]]:
    """A place for what enters block ``first``, and a step from it for each training."""
    facts = net.network.facts
    place: dict[str, torch.Tensor] = {}
    steps: list[Step] = []
    for number in range(count):
        raw = {**LORA, "lr": 1e-4 * (1 + number), "blocks": [first, facts.depth - 1]}
        adapted = build(net.network, canonical(raw, facts), 1, 0, 0)
        speed_up(adapted, "bf16", net.casts)
        adapted.set_train(True)

        def logits(adapted: Any = adapted) -> torch.Tensor:
            found: torch.Tensor = adapted.logits(place["x"], first)
            return found

        trained = list(adapted.trainable.values())
        steps.append(_stepper(logits, trained, films.y, _autocast(True), fused=True))
    return place, steps


def group(net: Net, films: Films, first: int, count: int, shared: bool) -> Step:
    """One batch of ``count`` trainings."""
    place, steps = trainings(net, films, first, count)

    def prepare() -> None:
        with torch.no_grad(), _autocast(True)():
            x = films.fresh()
            place["x"] = net.frozen.advance(0, x, first) if first else x

    def run() -> None:
        for number, step in enumerate(steps):
            if not (shared and number):
                prepare()
            step()

    return run


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="autopeft_vit_nano")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        net = Net(args, Path(folder))
        films, depth = Films(net), net.network.depth
        x = films.fresh().contiguous()
        print(f"{args.backbone}, {args.threads} threads, {date.today()}, ", end="")
        print(f"load {os.getloadavg()[0]:.1f}; images/s of each training, middle half\n")
        print("| blocks | alone | 2 shared | 3 shared | cached | 2 shared / alone | 3 / alone |")
        print("|---|---|---|---|---|---|---|")
        for first in (0, depth // 2, depth * 3 // 4, depth - 1):
            raw = {**LORA, "blocks": [first, depth - 1]}
            steps = {"alone": group(net, films, first, 1, False)}
            steps |= {f"{n}": group(net, films, first, n, True) for n in GROUPS}
            steps["cached"] = ours(net, raw, x, films.y, first)
            seconds = {k: np.array(v) for k, v in measure(steps, args.rounds).items()}
            count = {"alone": 1, "2": 2, "3": 3, "cached": 1}
            speed = {k: BATCH * count[k] / np.median(v) for k, v in seconds.items()}
            quarter = {
                k: BATCH * count[k] / np.percentile(v, [75, 25]) for k, v in seconds.items()
            }
            cells = [f"{speed[k]:.0f} ({quarter[k][0]:.0f}-{quarter[k][1]:.0f})" for k in speed]
            ratios = [f"{speed[k] / speed['alone']:.2f}x" for k in ("2", "3")]
            print(f"| {first}-{depth - 1} | " + " | ".join([*cells, *ratios]) + " |", flush=True)
    print(file=sys.stderr)


if __name__ == "__main__":
    main()
