"""How long does a sweep take, beside the same candidates as Ray Tune trainables with plain peft?

    python benchmarks/sweep.py LABELS.csv --label pneumonia            # 12 candidates, no pruning
    python benchmarks/sweep.py LABELS.csv --label pneumonia --pruned   # a search on each side
    ... --backbone vit_small_patch14_dinov2 --weights FILE --image-size 112

Two workers of one thread on each side, each side a fresh process, start-up, decoding and scoring
included. What a user would write is timm + ``get_peft_model`` + ``DataLoader`` (each image decoded
again in each epoch), fp32 or autocast, one Tune trial a candidate; the same films, batches of 32,
AdamW, warm-up and cosine, no augmentation, a random head, scored on the search patients after each
epoch. autopeft's side is its engine and its Ray runner without confirmation and test, which Tune
does not have.

``--pruned``: the probe at its best readout, then autopeft's engine with TPE, its rungs and heads
that start from the probe, against Tune + OptunaSearch + ASHA, both on one space; reported is when
each side first had the lower one of both final values, the probe counted and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

BORN = time.time()
BATCH, WEIGHT_DECAY = 32, 0.01
EPOCHS, PRUNED_EPOCHS, PRUNED_TRIALS = 3, 9, 24
# (blocks from the top as a share, modules, r, lr): from cheap to dear, each depth with two rates.
CANDIDATES = [
    ("all", "qkv+proj+fc1+fc2", 8, 1e-3), ("all", "qkv+proj+fc1+fc2", 8, 3e-3),
    ("all", "qkv", 8, 1e-3), ("all", "qkv", 16, 3e-3),
    ("half", "qkv+proj+fc1+fc2", 8, 1e-3), ("half", "qkv+proj+fc1+fc2", 4, 3e-3),
    ("half", "qkv+proj", 8, 1e-3), ("quarter", "qkv+proj+fc1+fc2", 8, 1e-3),
    ("quarter", "qkv+proj+fc1+fc2", 16, 3e-3), ("quarter", "qkv", 8, 3e-3),
    ("last", "qkv+proj+fc1+fc2", 8, 1e-3), ("last", "qkv+proj+fc1+fc2", 8, 3e-3),
]  # fmt: skip
DEPTHS = {"all": 1.0, "half": 0.5, "quarter": 0.25, "last": 0.0}
SPACE = """
methods:
  lora:
    r: {choices: [4, 8, 16]}
    lora_alpha: 2r
    last: {choices: [1, quarter, half, all]}
    modules: {choices: [qkv, qkv+proj+fc1+fc2]}
    lr: {type: float, low: 2e-4, high: 1e-2, log: true}
readout: {block: all, pool: POOL}
train: {weight_decay: 0.01, head_init: probe}
"""


def blocks_of(share: str, depth: int) -> list[int]:
    """First and last block."""
    return [depth - max(1, round(DEPTHS[share] * depth)), depth - 1]


# ---- autopeft's side ----------------------------------------------------------------------------


def options(args: argparse.Namespace, epochs: int) -> dict[str, Any]:
    """Settings of the search."""
    return {
        "dataset": args.labels, "label": (args.label,), "backbone": args.backbone,
        "weights": args.weights, "image_size": args.image_size, "epochs": epochs, "views": 1,
        "runner": "ray", "workers": 2, "cpus_per_worker": 1, "runs_dir": args.out, "name": "sweep",
        "quiet": True,
    }  # fmt: skip


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """The engine and its Ray runner on the twelve candidates, or on the space with its rungs."""
    import optuna

    from autopeft import baselines
    from autopeft import settings as settings_file
    from autopeft.bench import Audience, Bench
    from autopeft.engine import Engine, drive
    from autopeft.job import Outcome
    from autopeft.methods import canonical
    from autopeft.metrics import METRICS
    from autopeft.objective import load_objective
    from autopeft.prepare import make_audience, make_setup, prepare
    from autopeft.progress import Screen
    from autopeft.runners import open_runner
    from autopeft.runners.early import Early
    from autopeft.sampler import Proposal, Proposer
    from autopeft.schedule import Ladder, epoch_ladder
    from autopeft.selection import choose_readout
    from autopeft.space import load_space
    from autopeft.study import Study

    parts = {"import": time.time() - BORN}
    epochs = PRUNED_EPOCHS if args.pruned else EPOCHS
    values = settings_file.complete(options(args, epochs))
    settings = settings_file.from_mapping(values, "sweep")
    early = Early(settings)
    ready = prepare(settings, Screen(True), early.begin)
    parts["decode"] = ready.decode_seconds
    parts["open"] = time.time() - BORN - sum(parts.values())
    setup, facts = make_setup(settings, ready), ready.network.facts
    audience: Audience = make_audience(settings, ready, setup.digest())
    Path(args.out, "films.json").write_text(json.dumps(films(ready.task, setup)))
    study = Study(Path(setup.run_dir), ("maximize",))
    ladder = epoch_ladder(epochs) if args.pruned else Ladder((epochs,), epochs)
    if args.pruned:
        file = Path(args.out, "space.yaml")
        file.write_text(SPACE.replace("POOL", facts.own_pool))
        space = load_space(str(file))

        def suggest(trial: optuna.Trial) -> Any:
            return canonical(space.ask(trial, facts), facts)

        ask = Proposer(study, suggest, (), ladder, "tpe", args.seed, PRUNED_TRIALS).ask
        count = PRUNED_TRIALS
    else:
        waiting = [canonical(raw(c, facts), facts) for c in CANDIDATES]
        count = len(waiting)

        def ask() -> Proposal | None:
            return Proposal(waiting.pop(0), {}, {}, {}) if waiting else None

    engine = Engine(study, ask, load_objective("auroc"), ladder, count, setup.digest(), BATCH)
    seen: list[tuple[float, float]] = []
    spent = {"train": 0.0, "prefix": 0.0}

    def evaluate(outcomes: Sequence[Outcome]) -> Any:
        last = outcomes[-1]
        assert last.cost is not None
        found = audience.evaluation(audience.predictions(last, "search", 0), last.cost)
        value = METRICS["auroc"](found)
        seen.append((time.time() - BORN, float(value or 0)))
        prefix = float(last.extra.get("prefix_seconds", 0.0))
        spent["train"] += last.cost.train_seconds - prefix
        spent["prefix"] += prefix
        return value, found

    with closing(early), closing(open_runner(settings, setup, early=early)) as runner:
        parts["wait for Ray"] = time.time() - BORN - sum(parts.values())
        if args.pruned:  # as in a search: the probe at its best readout comes first
            bench = Bench(audience, study, runner, lambda o: None, lambda: None, BATCH)
            readout = choose_readout(bench, facts, lambda done, total: None)
            place = (readout.block, readout.pool)
            [probe] = baselines.make(("linear_probe",), facts, place, readout.strength)
            bench.train([probe], [1], "baseline", lambda done, total: None)
            evaluate([bench.trained[(probe.candidate.fingerprint, 1)]])
            parts["readouts and probe"] = time.time() - BORN - sum(parts.values())
        drive(engine, runner, evaluate)
        parts["sweep"] = time.time() - BORN - sum(parts.values())
    final = [e.last.value for e in study.entries if e.state == "complete" and e.last]
    parts |= {f"  of it {k}, both workers": v for k, v in spent.items()}
    rest = 2 * parts["sweep"] - sum(spent.values())
    parts["  of it load, score, save, wait, both workers"] = rest
    return {"seen": seen, "final": final, "parts": parts}


def raw(candidate: tuple[str, str, int, float], facts: Any) -> dict[str, Any]:
    """One of the twelve as autopeft writes it."""
    share, modules, r, lr = candidate
    return {
        "method": "lora", "blocks": blocks_of(share, facts.depth), "modules": modules, "r": r,
        "lora_alpha": 2 * r, "lr": lr, "weight_decay": WEIGHT_DECAY, "head_init": "random",
        "readout_block": facts.depth, "readout_pool": facts.own_pool,
    }  # fmt: skip


def films(task: Any, setup: Any) -> dict[str, Any]:
    """What the other side reads: paths, labels, patients of train and search."""
    found: dict[str, Any] = {"root": str(task.root)}
    for split in ("train", "search"):
        rows = setup.rows[split]
        found[split] = {
            "path": [str(task.paths[i]) for i in rows.index],
            "label": rows.label[:, 0].tolist(),
            "patient": [str(p) for p in rows.patient],
        }
    return found


# ---- what a user would write --------------------------------------------------------------------


def train_plain(config: dict[str, Any], args: argparse.Namespace, epochs: int) -> None:
    """A Tune function trainable: timm, peft, a DataLoader."""
    from contextlib import nullcontext

    import timm
    import torch
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from ray import tune
    from torch.utils.data import DataLoader, Dataset

    if args.backbone == "autopeft_vit_nano":
        import autopeft.backbones.nano  # noqa: F401  (makes it known to timm)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given: dict[str, Any] = {"img_size": args.image_size or 112}
    if args.weights:
        given["pretrained_cfg_overlay"] = {"file": args.weights}
    net = timm.create_model(args.backbone, pretrained=True, num_classes=1, **given)
    size, cfg = given["img_size"], net.pretrained_cfg
    first, last = blocks_of(config["share"], len(net.blocks))
    blocks = "|".join(str(b) for b in range(first, last + 1))
    target = rf"blocks\.({blocks})\..*\.?({config['modules'].replace('+', '|')})"
    model = get_peft_model(
        net,
        LoraConfig(
            r=config["r"],
            lora_alpha=2 * config["r"],
            target_modules=target,
            modules_to_save=["head"],
        ),  # fmt: skip
    )
    told = json.loads(Path(args.out, "films.json").read_text())
    mean, std = (torch.tensor(cfg[k]).view(3, 1, 1) for k in ("mean", "std"))

    class Films(Dataset):  # type: ignore[type-arg]
        def __init__(self, split: str) -> None:
            self.rows = told[split]

        def __len__(self) -> int:
            return len(self.rows["path"])

        def __getitem__(self, i: int) -> Any:
            image = Image.open(Path(told["root"], self.rows["path"][i])).convert("RGB")
            pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
            return (x - mean) / std, self.rows["label"][i]

    loader = DataLoader(Films("train"), batch_size=BATCH, shuffle=True)
    scored = DataLoader(Films("search"), batch_size=64)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config["lr"], weight_decay=WEIGHT_DECAY)
    total = epochs * len(loader)
    warm = max(1, round(0.1 * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (s + 1) / warm if s < warm
        else 0.5 * (1 + np.cos(np.pi * (s - warm) / max(1, total - warm))),
    )  # fmt: skip
    low = args.autocast
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
                out = model(x)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                out.float()[:, 0], y.float()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            scores = np.concatenate([model(x)[:, 0].float().numpy() for x, _ in scored])
        tune.report({"auroc": auroc_by_patient(scores, told["search"])})


def auroc_by_patient(score: Any, rows: dict[str, Any]) -> float:
    """The metric of autopeft on the search films, so that both sides mean one number."""
    from autopeft.evaluation import Predictions
    from autopeft.metrics.classification import auroc

    predictions = Predictions(
        score=np.asarray(score, np.float64)[:, None], target=np.array(rows["label"])[:, None],
        patient=np.array(rows["patient"]), part=np.zeros(len(score), np.int64), groups={},
        classes=("y",), kind="binary", split="search",
    )  # fmt: skip
    return float(auroc(predictions) or 0.0)


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Ray Tune over the same candidates, or OptunaSearch with ASHA over the space."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    seen: list[tuple[float, float]] = []
    parts = {"import": time.time() - BORN}

    class Note(tune.Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            seen.append((time.time() - BORN, float(result["auroc"])))

    path = ":".join(filter(None, [*sys.path, str(Path(__file__).parent)]))
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR",
        log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}},
        _system_config={"worker_niceness": 0},
    )  # fmt: skip
    parts["start Ray"] = time.time() - BORN - sum(parts.values())
    keys = ("share", "modules", "r", "lr")
    epochs = PRUNED_EPOCHS if args.pruned else EPOCHS
    if args.pruned:
        search = {
            "share": tune.choice(list(DEPTHS)), "r": tune.choice([4, 8, 16]),
            "modules": tune.choice(["qkv", "qkv+proj+fc1+fc2"]),
            "lr": tune.loguniform(2e-4, 1e-2),
        }  # fmt: skip
        config = tune.TuneConfig(
            metric="auroc", mode="max", num_samples=PRUNED_TRIALS, max_concurrent_trials=2,
            search_alg=OptunaSearch(seed=args.seed),
            scheduler=ASHAScheduler(max_t=epochs, grace_period=1, reduction_factor=3),
        )  # fmt: skip
    else:
        every = [dict(zip(keys, c, strict=True)) for c in CANDIDATES]
        search = {"c": tune.grid_search(every)}
        config = tune.TuneConfig(metric="auroc", mode="max", max_concurrent_trials=2)

    def trainable(given: dict[str, Any]) -> None:
        train_plain(given.get("c", given), args, epochs)

    found = tune.Tuner(
        trainable, param_space=search, tune_config=config,
        run_config=tune.RunConfig(
            storage_path=str(Path(args.out, "tune").resolve()), callbacks=[Note()], verbose=0
        ),
    ).fit()  # fmt: skip
    final = [r.metrics["auroc"] for r in found if r.metrics and "auroc" in r.metrics]
    parts["sweep"] = time.time() - BORN - sum(parts.values())
    ray.shutdown()
    return {"seen": seen, "final": final, "parts": parts}


# ---- both ---------------------------------------------------------------------------------------


def one_side(side: str, given: list[str], out: str) -> dict[str, Any]:
    """A side in a process of its own."""
    began = time.time()
    command = [sys.executable, __file__, *given, "--side", side, "--out", out]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    result["wall"] = time.time() - began
    return result


def main() -> None:
    """Runs both sides in turns and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels")
    parser.add_argument("--label", required=True)
    parser.add_argument("--backbone", default="autopeft_vit_nano")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--autocast", action="store_true", help="plain peft under autocast")
    parser.add_argument("--pruned", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps((ours if args.side == "ours" else plain)(args)))
        return
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as out:
            results = {side: one_side(side, sys.argv[1:], out) for side in ("ours", "plain")}
        tell(results, args, number)


def tell(results: dict[str, dict[str, Any]], args: argparse.Namespace, number: int) -> None:
    """Prints one round."""
    a, b = results["ours"], results["plain"]
    kind = "pruned" if args.pruned else f"{len(CANDIDATES)} candidates"
    print(f"\n{args.backbone}, {kind}, round {number + 1}, load {os.getloadavg()[0]:.1f}, ")
    print(f"{date.today()}; plain peft in {'autocast' if args.autocast else 'fp32'}\n")
    print(
        f"wall: autopeft {a['wall']:.0f} s, plain {b['wall']:.0f} s: {b['wall'] / a['wall']:.1f}x"
    )
    first = [r["seen"][0][0] for r in (a, b)]
    print(f"first result: autopeft {first[0]:.0f} s, plain {first[1]:.0f} s")
    if args.pruned:
        best = [max(r["final"]) for r in (a, b)]
        when = [next(t for t, v in r["seen"] if v >= min(best)) for r in (a, b)]
        tuned = next(t for t, v in a["seen"][1:] if v >= min(best))
        print(f"best: autopeft {best[0]:.4f}, plain {best[1]:.4f}; the lower of both was reached ")
        print(f"after {when[0]:.0f} s and {when[1]:.0f} s: {when[1] / when[0]:.1f}x; ")
        print(f"by an adapter of autopeft's after {tuned:.0f} s: {when[1] / tuned:.1f}x")
    else:
        mean = [np.mean(r["final"]) for r in (a, b)]
        apart = np.array(a["final"]) - np.array(b["final"])
        error = apart.std(ddof=1) / np.sqrt(len(apart))
        print(f"AUROC, mean of {len(apart)} candidates: {mean[0]:.4f} and {mean[1]:.4f}; ")
        print(
            f"paired by candidate, one seed each: {apart.mean():+.4f}, standard error {error:.4f}"
        )
        print(f"each: {np.round(apart, 3).tolist()}")
    for side, r in results.items():
        print(f"{side}: " + ", ".join(f"{k.strip()} {v:.0f} s" for k, v in r["parts"].items()))


if __name__ == "__main__":
    main()
