"""LoRA on `autopeft_vit_nano` beside its own linear probe (part of `benchmarks/backbone.py`).

Both sides read class token + mean of patches, see the same folds and start from the same place:
LoRA's head begins as the fold's probe (LP-FT, Kumar et al. 2022, arXiv:2202.10054) and keeps the
probe's own L2 penalty, so that at step 0 both models are the same function.

Blocks below `Recipe.first_block` are frozen, so what they give for the plain images and for a few
augmented views of each is computed once and shared by all folds and seeds.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
import timm
import torch
from backbone_tasks import (
    Floats,
    Ints,
    Probe,
    Task,
    auroc,
    features,
    folds,
    pixels,
    probe,
    readout,
)
from peft import LoraConfig, get_peft_model

NAME = "autopeft_vit_nano"


@dataclass(frozen=True)
class Recipe:
    """How LoRA is trained; fixed before any fold that it is judged on was trained.

    Try others on NIH-64 sex (other patients): `--only recipe`.
    """

    first_block: int = 3
    modules: str = "attn.qkv|attn.proj|mlp.fc1|mlp.fc2"
    r: int = 8
    lr: float = 1e-3
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 3
    batch: int = 16
    views: int = 4
    shift: int = 6


RECIPE = Recipe()
CANDIDATES = {
    "default": Recipe(),
    "from block 1": Recipe(first_block=1),
    "lr 3e-4": Recipe(lr=3e-4),
    "lr 3e-3": Recipe(lr=3e-3),
    "6 epochs": Recipe(epochs=6),
}


class Classifier(torch.nn.Module):
    """A LoRA-wrapped ViT under the head of a fitted probe; logits [B]."""

    def __init__(self, recipe: Recipe, start: Probe) -> None:
        super().__init__()
        vit = timm.create_model(NAME, pretrained=True, num_classes=0, img_size=112)
        blocks = "|".join(str(i) for i in range(recipe.first_block, len(vit.blocks)))
        modules = recipe.modules.replace(".", r"\.")
        config = LoraConfig(
            r=recipe.r,
            lora_alpha=2 * recipe.r,
            target_modules=rf"blocks\.({blocks})\.({modules})",
        )
        self.peft = get_peft_model(vit, config)
        self.first_block = recipe.first_block
        self.register_buffer("mean", torch.from_numpy(start.mean).float())
        self.register_buffer("scale", torch.from_numpy(start.scale).float())
        self.head = torch.nn.Linear(len(start.weight), 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(start.weight)[None])
            self.head.bias.fill_(start.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits [B] of the tokens [B, 1 + P, D] that enter the first adapted block."""
        vit = self.peft.base_model.model
        for block in vit.blocks[self.first_block :]:
            tokens = block(tokens)
        standard = (readout(vit.norm(tokens)).float() - self.mean) / self.scale
        return self.head(standard)[:, 0]


def augment(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Moves by whole pixels, flips half of the batch and changes contrast by up to 15%."""
    size = images.shape[-1]
    padded = torch.nn.functional.pad(images, [shift] * 4, mode="replicate")
    top, left = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
    moved = padded[:, :, top : top + size, left : left + size]
    flip = torch.rand(len(images), generator=generator) < 0.5
    moved = torch.where(flip[:, None, None, None], moved.flip(-1), moved)
    gain = 0.85 + 0.3 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return moved * gain


@dataclass(frozen=True)
class Prefix:
    """What enters the first adapted block: plain [N, 1 + P, D], views [V, N, 1 + P, D] (fp16)."""

    plain: torch.Tensor
    views: torch.Tensor


@torch.inference_mode()
def prefix(task: Task, recipe: Recipe) -> Prefix:
    """Runs the frozen blocks over the plain images (fp32) and over their views (bf16)."""
    vit = timm.create_model(NAME, pretrained=True, num_classes=0, img_size=112).eval()
    generator = torch.Generator().manual_seed(0)

    def entering(images: torch.Tensor) -> torch.Tensor:
        [(patches, first)] = vit.forward_intermediates(
            images,
            indices=[recipe.first_block - 1],
            return_prefix_tokens=True,
            output_fmt="NLC",
            stop_early=True,
            intermediates_only=True,
        )
        return torch.cat([first, patches], dim=1)

    batches = pixels(task.images).split(20)
    plain = torch.cat([entering(batch) for batch in batches])
    views = torch.empty(recipe.views, *plain.shape, dtype=torch.float16)
    for view in views:
        with torch.autocast("cpu", torch.bfloat16):
            moved = [entering(augment(batch, recipe.shift, generator)) for batch in batches]
        view.copy_(torch.cat(moved))
    return Prefix(plain.clone(), views.clone())


def train(
    task: Task, stored: Prefix, rows: Ints, start: Probe, recipe: Recipe, seed: int
) -> Classifier:
    """Trains LoRA and head on the given rows; the last epoch is used."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(recipe, start)
    adapter = [p for p in model.peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": adapter, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
            {"params": model.head.parameters(), "lr": recipe.head_lr, "weight_decay": 0.0},
        ]
    )
    steps = recipe.epochs * (len(rows) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [recipe.lr, recipe.head_lr], total_steps=steps, pct_start=0.1
    )
    kept, target = torch.from_numpy(rows), torch.from_numpy(task.target).float()
    # scikit-learn minimizes C * sum(loss) + |w|^2 / 2; divided by C * N it is this.
    penalty = 1 / (2 * start.strength * len(rows))
    model.train()
    for _ in range(recipe.epochs):
        order = kept[torch.randperm(len(kept), generator=generator)]
        for part in order[: len(order) // recipe.batch * recipe.batch].split(recipe.batch):
            view = torch.randint(0, recipe.views, (len(part),), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(stored.views[view, part].float())
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[part])
            (loss + penalty * model.head.weight.square().sum()).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


@torch.inference_mode()
def scores(model: Classifier, stored: Prefix, rows: Ints) -> Floats:
    """Returns fp32 logits of the plain images."""
    model.eval()
    parts = torch.from_numpy(rows).split(50)
    return np.concatenate([model(stored.plain[part]).double().numpy() for part in parts])


@dataclass(frozen=True)
class Paired:
    """Out-of-fold logits of probe and LoRA for one seed, all [N]."""

    probe: Floats
    lora: Floats
    fold: Ints


def paired(
    task: Task, frozen: Floats, stored: Prefix, recipe: Recipe, seed: int, count: int = 5
) -> Paired:
    """Trains both on each of 5 folds (`count`: only the first few) and scores the held-out rows.

    The seed sets the folds, LoRA's initialization, the order and the view of each step.
    """
    size = len(task.target)
    result = Paired(np.zeros(size), np.zeros(size), np.full(size, -1, dtype=np.int64))
    for index, (rows, held_out) in enumerate(folds(task, seed)):
        if index == count:
            break
        start = probe(frozen, task, rows)
        result.probe[held_out] = start.score(frozen[held_out])
        model = train(task, stored, rows, start, recipe, seed * 5 + index)
        result.lora[held_out] = scores(model, stored, held_out)
        result.fold[held_out] = index
        print(f"{task.name}: seed {seed}, fold {index} done", file=sys.stderr, flush=True)
    return result


def probed(task: Task) -> Floats:
    """Returns the features that the probe sees, float [N, 2 D]."""
    vit = timm.create_model(NAME, pretrained=True, num_classes=0, img_size=112)
    return features(vit, task.images)


def difference(task: Task, runs: list[Paired], samples: int = 1000) -> tuple[Floats, Floats]:
    """Bootstraps patients, the same ones for both models and all seeds.

    Returns:
        AUROC of (probe, LoRA) by seed [S, 2], and the bootstrapped mean difference [samples].
    """

    def values(weight: Floats | None) -> Floats:
        pairs = [[run.probe, run.lora] for run in runs]
        return np.array(
            [
                [auroc(score, task.target, run.fold, weight) for score in pair]
                for run, pair in zip(runs, pairs, strict=True)
            ]
        )

    random, person = np.random.default_rng(0), task.patient
    patients = int(person.max()) + 1
    draws = np.zeros(samples)
    for index in range(samples):
        count = np.bincount(random.integers(0, patients, patients), minlength=patients)
        sampled = values(count[person].astype(np.float64))
        draws[index] = (sampled[:, 1] - sampled[:, 0]).mean()
    return values(None), draws


def compare(task: Task, recipe: Recipe, seeds: int) -> str:
    """Returns one row of the LoRA table."""
    started = time.perf_counter()
    frozen, stored = probed(task), prefix(task, recipe)
    runs = [paired(task, frozen, stored, recipe, seed) for seed in range(seeds)]
    point, draws = difference(task, runs)
    gain = point[:, 1] - point[:, 0]
    low, high = np.quantile(draws, [0.025, 0.975])
    by_seed = ", ".join(f"{value:+.3f}" for value in gain)
    minutes = (time.perf_counter() - started) / 60
    return (
        f"| {task.name} | {point[:, 0].mean():.3f} | {point[:, 1].mean():.3f} "
        f"| {gain.mean():+.3f} ({low:+.3f} to {high:+.3f}) | {by_seed} | {minutes:.0f} |"
    )


def choose(task: Task, count: int = 3) -> None:
    """Prints, for each candidate recipe, AUROC on the first folds of a task of other patients."""
    print(f"| recipe on {task.name}, {count} of 5 folds | probe | LoRA |\n|---|---|---|")
    frozen = probed(task)
    for name, recipe in CANDIDATES.items():
        run = paired(task, frozen, prefix(task, recipe), recipe, seed=0, count=count)
        seen = run.fold >= 0
        values = [auroc(s[seen], task.target[seen], run.fold[seen]) for s in (run.probe, run.lora)]
        print(f"| {name} | {values[0]:.3f} | {values[1]:.3f} |", flush=True)
