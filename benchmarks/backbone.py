"""What the backbone in the wheel is worth: linear probes, speed, and LoRA beside its own probe.

    python benchmarks/backbone.py --data DIR --teacher vit_small_patch14_dinov2.safetensors

DIR holds `nih_cxr_pneumonia1000`, `nih_cxr64_1000` and `paed_pneumonia`, each with `labels.csv`
(path, patient, target, sex, age, view) beside `images/`; a folder that is absent is skipped with a
line. TEACHER is a timm state dict of DINOv2 ViT-S/14; without it, speed is still measured (random
weights are as fast). Sections: `--only probe|speed|lora|recipe`. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import timm
import torch
from backbone_lora import RECIPE, choose, compare
from backbone_tasks import Floats, Task, auroc, features, load, out_of_fold, thumbnail

import autopeft.backbones.nano  # noqa: F401  (registers the model)

NAME = "autopeft_vit_nano"
TEACHER = "vit_small_patch14_dinov2"
PROBED = ("NIH pneumonia", "NIH sex", "NIH-64 abnormal", "bacterial vs viral")
JUDGED = ("NIH sex", "NIH pneumonia")
# What class token + mean of patches should reach.
TARGETS = {"NIH pneumonia": 0.90, "NIH sex": 0.88, "NIH-64 abnormal": 0.60}


def nano(pretrained: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, pretrained=pretrained, num_classes=0, img_size=112).eval()


def teacher(file: Path | None) -> torch.nn.Module:
    overlay = {"file": str(file)} if file else None
    return timm.create_model(
        TEACHER,
        pretrained=file is not None,
        num_classes=0,
        img_size=112,
        pretrained_cfg_overlay=overlay,
    ).eval()


# ---- linear probes ---------------------------------------------------------------------------


def views(task: Task, file: Path | None) -> Iterator[tuple[str, Floats]]:
    """Yields what a probe may look at, by name."""
    yield NAME, features(nano(), task.images)
    if file is not None:
        yield "teacher, 12 blocks", features(teacher(file), task.images)
    yield "random weights", features(nano(pretrained=False), task.images)
    yield "8x8 thumbnail", thumbnail(task.images)
    if task.demographics is not None:
        yield "demographics", task.demographics


def report_probes(root: Path, file: Path | None, seeds: int) -> None:
    print(f"\n### Linear probe: AUROC, mean (sd) of {seeds} seeds of 5 folds by patient\n")
    if file is None:
        print("(no --teacher: the teacher's row is left out)\n")
    print("| task | images | patients | features | AUROC | asked |\n|---|---|---|---|---|---|")
    for name in PROBED:
        task = load(root, name)
        if task is None:
            print(f"| {name} | skipped: its folder is not in --data | | | | |")
            continue
        size = f"{len(task.target)} | {task.patient.max() + 1}"
        for view, values in views(task, file):
            runs = [out_of_fold(values, task, seed) for seed in range(seeds)]
            points = [auroc(score, task.target, fold) for score, fold in runs]
            asked = f"{TARGETS[name]:.2f}" if view == NAME and name in TARGETS else ""
            spread = np.std(points, ddof=1) if seeds > 1 else 0.0
            row = f"{name} | {size} | {view} | {np.mean(points):.3f} ({spread:.3f}) | {asked}"
            print(f"| {row} |", flush=True)


# ---- speed -----------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Returns wall and processor seconds; the second is what a busy machine leaves alone."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def report_speed(rounds: int = 20, batch: int = 16) -> None:
    """Times both networks in turn, so that a busy moment of the machine meets both."""
    images = torch.randn(batch, 3, 112, 112)
    ours, other = nano(), teacher(None)
    print(f"\n### Forward of {batch} images at 112 px, medians of {rounds} alternating runs\n")
    print(f"| precision | clock | {NAME} | DINOv2 ViT-S/14 | ratio | quartiles of the ratio |")
    print("|---|---|---|---|---|---|")
    for precision, autocast in (("fp32", False), ("bf16 autocast", True)):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pairs = [
                (seconds(lambda: ours(images)), seconds(lambda: other(images)))
                for _ in range(rounds + 2)
            ][2:]
        for clock, name in enumerate(("wall", "processor")):
            fast, slow = (statistics.median(p[side][clock] for p in pairs) for side in (0, 1))
            low, _, high = statistics.quantiles([p[1][clock] / p[0][clock] for p in pairs], n=4)
            row = f"{precision} | {name} | {fast * 1e3:.0f} ms | {slow * 1e3:.0f} ms"
            print(f"| {row} | {slow / fast:.2f} | {low:.2f} to {high:.2f} |", flush=True)
    loads = [seconds(nano) for _ in range(9)]
    wall, processor = (statistics.median(load[clock] for load in loads) for clock in (0, 1))
    print(
        f"\nLoading (`timm.create_model`, pretrained), median of {len(loads)}: {wall:.2f} s wall, "
        f"{processor:.2f} s processor; slowest {max(load[0] for load in loads):.2f} s wall."
    )


# ---- LoRA ------------------------------------------------------------------------------------


def report_lora(root: Path, names: tuple[str, ...], seeds: int) -> None:
    print(f"\n### LoRA beside its own linear probe: 5 folds by patient, {seeds} seeds\n")
    print(f"{RECIPE}\n")
    print("| task | probe | LoRA | gain (95%, patients) | gain by seed | minutes |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in names:
        task = load(root, name)
        if task is None:
            print(f"| {name} | skipped: its folder is not in --data | | | | |")
        else:
            print(compare(task, RECIPE, seeds), flush=True)


def report_recipes(root: Path) -> None:
    task = load(root, "NIH-64 sex")
    judged = load(root, JUDGED[0])
    if task is None or judged is None:
        print("recipe: skipped, needs nih_cxr64_1000 and nih_cxr_pneumonia1000 in --data")
        return
    choose(task.keep(~np.isin(task.person, judged.person)))


def machine() -> str:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    load_average = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, load {load_average:.1f} at the start, "
        f"torch {torch.__version__}, timm {timm.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the backbone of the wheel.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--only", choices=["probe", "speed", "lora", "recipe"])
    parser.add_argument("--fold-seeds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="of LoRA")
    parser.add_argument("--task", choices=JUDGED, help="LoRA on this one only")
    options = parser.parse_args()
    # The recipe is chosen by hand from this table, so it is not part of a plain run.
    sections = [options.only] if options.only else ["speed", "probe", "lora"]

    print(machine(), flush=True)
    if "speed" in sections:
        report_speed()
    if "probe" in sections:
        report_probes(options.data, options.teacher, options.fold_seeds)
    if "recipe" in sections:
        report_recipes(options.data)
    if "lora" in sections:
        names = (options.task,) if options.task else JUDGED
        report_lora(options.data, names, options.seeds)


if __name__ == "__main__":
    main()
