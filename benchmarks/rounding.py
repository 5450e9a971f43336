"""How much of a young adapter's effect is left in bf16?

    python benchmarks/rounding.py                               # the backbone in the package
    python benchmarks/rounding.py --backbone vit_small_patch14_dinov2 --weights FILE

LoRA r=8 on all blocks takes a few AdamW steps in fp32 on 32 random films. Its effect is what it
changes in the last block's states, adapter on minus adapter off. Told is the share of the fp32
effect that is left, <e, e32> / <e32, e32>, in the fast path of a worker and under plain autocast
with peft's own layers. The same weights are in all three.
"""

from __future__ import annotations

import argparse
from datetime import date

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.backbones.weights import load_backbone
from autopeft.methods import build, canonical
from autopeft.methods.adapted import Adapted
from autopeft.training.fast import Casts, speed_up
from autopeft.training.precision import Precision, autocast

RUNS = ((1e-5, 3), (1e-4, 1), (1e-4, 3), (1e-4, 20), (1e-3, 3))
CANDIDATE = {"method": "lora", "r": 8, "lora_alpha": 16, "modules": "all", "blocks": "all"}


def train(adapted: Adapted, films: Tensor, labels: Tensor, rate: float, steps: int) -> None:
    """So many AdamW steps in fp32."""
    adapted.set_train(True)
    optimizer = torch.optim.AdamW(list(adapted.trainable.values()), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(adapted.logits(films), labels).backward()
        optimizer.step()


def effect(adapted: Adapted, films: Tensor, precision: Precision) -> Tensor:
    """The last states with the adapter minus those without it. Its B is 0 afterwards."""
    states = []
    for _ in range(2):
        with torch.no_grad(), autocast(precision):  # a fresh one: it remembers what it cast
            states.append(adapted.network.advance(0, films, adapted.network.depth).float())
        for name, parameter in adapted.trainable.items():
            if "lora_B" in name:
                parameter.data.zero_()
    return states[0] - states[1]


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="autopeft_vit_nano")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, default=112)
    args = parser.parse_args()
    network = load_backbone(args.backbone, args.weights, args.image_size, True)
    generator = torch.Generator().manual_seed(0)
    films = torch.randn(32, 3, args.image_size, args.image_size, generator=generator)
    labels = (torch.rand(32, 1, generator=generator) > 0.5).float()
    print(f"{args.backbone}, torch {torch.__version__}, {date.today()}\n")
    print("| learning rate | steps | left, fast path | left, plain autocast |\n|---|---|---|---|")
    casts = Casts(network.model)
    for rate, steps in RUNS:
        candidate = canonical({**CANDIDATE, "lr": rate}, network.facts)
        teacher = build(network, candidate, 1, seed=0, repeat=0)
        train(teacher, films, labels, rate, steps)
        learned = {n: p.detach().clone() for n, p in teacher.trainable.items()}
        effects = {}
        for kind in ("fp32", "fast", "autocast"):
            adapted = build(network, candidate, 1, seed=0, repeat=0)
            with torch.no_grad():
                for name, parameter in adapted.trainable.items():
                    parameter.copy_(learned[name])
            if kind == "fast":
                speed_up(adapted, "bf16", casts)
            effects[kind] = effect(adapted, films, "fp32" if kind == "fp32" else "bf16")
        exact = effects.pop("fp32")
        left = [float((e * exact).sum() / exact.square().sum()) for e in effects.values()]
        print(f"| {rate:g} | {steps} | {left[0]:.3f} | {left[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
