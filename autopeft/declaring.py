"""What ``protocol.yaml`` says, and the first line on the screen: before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft import baselines, plugins, protocol, starting
from autopeft.job import Setup
from autopeft.parts import fold_rows
from autopeft.prepare import Ready
from autopeft.settings import SEEDS, Settings


def declare(settings: Settings, ready: Ready, setup: Setup) -> Mapping[str, Any]:
    """What ``protocol.yaml`` says: what will be called a success, before anything is trained."""
    from autopeft.version import __version__

    task, objective = ready.task, ready.objective
    wanted = baselines.names(settings.baselines, "groups" in objective.needs)
    splits = dict.fromkeys((*task.inner, "confirm", "test"))
    counts = {s: task.counts(s) for s in splits}
    every = {
        s: {
            str(r["class"]): f"{r.positives}+ / {r.negatives}- of {r.patients} {task.unit}s"
            for _, r in t[t.attribute == "all"].iterrows()
        }
        for s, t in counts.items()
    }
    return {
        "autopeft": __version__,
        "use": "Research use; not a medical device.",
        "task": {"name": task.name, "digest": task.digest, "unit": task.unit},
        "classes": list(task.classes),
        # Left out where it is 1, so that runs from before it existed can go on.
        **({"label_fraction": settings.label_fraction} if settings.label_fraction < 1 else {}),
        **({"init_adapter": starting.declared(ready.start)} if ready.start else {}),
        "splits": every,
        "inner": ready.counted.inner,
        **({"folds": _fold_patients(setup)} if ready.folds else {}),
        "setup": setup.digest(),
        "objective": settings.objective,
        "objective_sha256": plugins.find("objectives", settings.objective).sha256,
        "space_sha256": plugins.find("search_spaces", settings.space).sha256,
        "space": settings.space,
        "methods_from": [{"file": f.path.name, "sha256": f.sha256} for f in ready.space.plugins],
        "epochs": settings.epochs,
        "rungs": list(ready.ladder(settings.epochs).stops),
        "finalists": f"{settings.confirm}, and always the linear probe at its best readout; "
        "the rule's pick, then whom replays pick most often",
        "seeds": settings.seeds
        or dict(zip(("screen", "last two and baselines"), SEEDS, strict=True)),
        "baselines": list(wanted),
        "reference": "best of the reference baselines, "
        + ("on all folds, repeat 0" if ready.folds else "mean of the seeds, on search"),
        "groups": {a: list(g) for a, g in ready.counted.groups.items()},
        "groups_left_out": list(ready.counted.notes),
        "ranking": f"{objective.primary} on confirm, mean of the seeds; "
        "within one paired standard error the fewest trained parameters win; "
        "where confirm cannot say, the most frequent pick of the replays",
        "contrast": f"winner minus the baseline strongest on confirm, {objective.primary}, test",
        "alpha": 0.05,
        "margin": settings.margin,
        "words": "better: interval above 0; not worse: above -margin; worse: below 0; "
        "else cannot tell, also where the primary metric is undefined on test",
        "others": "winner minus each other baseline: described, p by Holm; groups and labels: "
        "bands that hold together (max-t), described",
        "threshold": "sensitivity .90 on search, frozen; intervals fit it again",
        "external_checks": list(task.external),
        **protocol.group_rules(objective.needs, objective.primary),
        "accuracy": "kept: one-sided 95% bound of the paired AUROC difference on confirm to the "
        "strongest baseline there above -margin",
    }


def opening(settings: Settings, ready: Ready, setup: Setup) -> str:
    """The first line on stderr: what is about to be trained, on whom, how."""
    task = ready.task
    sizes = ", ".join(f"{s} {len(setup.rows[s])}" for s in setup.rows)
    if settings.label_fraction < 1:
        share = f"{100 * settings.label_fraction:g}%"
        sizes += f"; {len(set(setup.rows['train'].patient))} train {task.unit}s, {share} of them"
    return (
        f"run {settings.run_name}: {task.name}, {task.patients} {task.unit}s, "
        f"{len(task.paths)} images ({sizes}); {_inner(ready, setup)}; {settings.backbone} at "
        f"{setup.image_size} px, {setup.precision}, {setup.threads} threads a worker"
        + (f", {setup.micro_batch} images a forward pass" if setup.micro_batch else "")
        + (", GPU" if setup.device == "cuda" else "")
    )


def _inner(ready: Ready, setup: Setup) -> str:
    """What trials are measured on, and why that was taken."""
    why = f" (auto: {ready.counted.why})" if ready.counted.why else ""
    if not ready.folds:
        return f"holdout{why}"
    sizes = ", ".join(map(str, _fold_patients(setup)))
    return f"cv5{why}, folds of {sizes} {ready.task.unit}s"


def _fold_patients(setup: Setup) -> list[int]:
    """Patients that each fold holds out; a split column of the user's makes them unequal."""
    return [len(set(rows.patient.tolist())) for rows in fold_rows(setup.rows)]
