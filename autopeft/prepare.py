"""Everything that bad input could break is opened here, before a run writes anything."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from autopeft import baselines, plugins, protocol, starting
from autopeft import settings as settings_file
from autopeft.adapter_files import adapter_hash
from autopeft.bench import Audience
from autopeft.data import load_task
from autopeft.data.counted import CountedGroups, check_groups
from autopeft.data.probe import cut_probe
from autopeft.data.splits import PROBE
from autopeft.data.task import Task
from autopeft.data.twins import twin_notes
from autopeft.errors import UserError
from autopeft.files import disk_trouble, remove_empty
from autopeft.job import Rows, Setup
from autopeft.machine import cache_bytes, look_at_machine
from autopeft.methods.own import register_files, ship, try_methods
from autopeft.metrics.groups import LEAST
from autopeft.objective import Objective, load_objective
from autopeft.parts import fold_rows, subsample
from autopeft.plugins import Plugin
from autopeft.progress import Screen
from autopeft.result import Result, load_result
from autopeft.runners import check_address
from autopeft.schedule import Ladder, epoch_ladder, fold_ladder
from autopeft.settings import Settings
from autopeft.space import Space, load_space
from autopeft.study import Study
from autopeft.suited import suited

if TYPE_CHECKING:
    from autopeft.init_adapter import Start
    from autopeft.training.images import ImageStore


Decode = Callable[[Task, Settings, int, Screen], "ImageStore"]


@dataclass(frozen=True)
class Ready:
    """Everything that bad input could break, opened and checked."""

    task: Task
    objective: Objective
    space: Space
    network: Any
    images: Path
    pixels: str
    counted: CountedGroups
    decode_seconds: float
    start: Start | None = None

    @property
    def folds(self) -> bool:
        """Whether the search measures on five folds instead of ``search`` alone."""
        return self.counted.inner == "cv5"

    def ladder(self, epochs: int) -> Ladder:
        """The rungs of a search with trainings of that length."""
        return fold_ladder(epochs) if self.folds else epoch_ladder(epochs)


def finished(settings: Settings) -> Result | None:
    """The result of a run that is done, or None; refuses other settings on an old run."""
    folder = settings.run_dir
    saved_file = folder / "settings.yaml"
    if not saved_file.exists():
        return None
    saved = settings_file.from_mapping(settings_file.load(saved_file), str(saved_file))
    settings.check_same(saved)
    done = (folder / "result.json").exists()
    if settings.trials > saved.trials and (done or protocol.test_opened(folder)):
        raise UserError(
            f"the run is finished with {saved.trials} trials and its test patients are opened",
            str(folder),
            "More trials would be chosen knowing the test; take a new --name.",
        )
    if not done:
        if (folder / "protocol.yaml").exists():
            _check_unchanged(settings, folder, "started")
        return None
    result = load_result(folder)
    # So that the result's adapters can be loaded where they were made with a method of one's own.
    register_files(_check_unchanged(settings, folder, "finished"))
    return result


def _check_unchanged(settings: Settings, folder: Path, word: str) -> tuple[Plugin, ...]:
    """Refuses an old answer to a new question: another objective, space, method or other data.

    Returns:
        The files of the user's own methods, as they were.
    """
    declared = yaml.safe_load((folder / "protocol.yaml").read_text())
    objective = plugins.find("objectives", settings.objective)
    space = plugins.find("search_spaces", settings.space)
    changed = ["objective"] if objective.sha256 != declared["objective_sha256"] else []
    files: tuple[Plugin, ...] = ()
    if space.sha256 != declared["space_sha256"]:
        changed.append("space")
    else:
        files = load_space(settings.space).plugins
        then = {(f["file"], f["sha256"]) for f in declared.get("methods_from", ())}
        changed += [f.path.name for f in files if (f.path.name, f.sha256) not in then]
    if settings.init_adapter is not None:
        now, then = adapter_hash(Path(settings.init_adapter)), declared["init_adapter"]["sha256"]
        changed += ["the init adapter"] if now != then else []
    # A run that goes on loads its task anyway, and its setup's digest is compared then.
    if word == "finished":
        task = _load(
            settings, Path(settings.runs_dir) / ".cache", load_objective(settings.objective)
        )
        changed += ["data"] if task.digest != declared["task"]["digest"] else []
    if changed:
        raise UserError(
            f"{' and '.join(changed)} changed since this run was {word}",
            str(folder),
            "Take a new --name for the new question.",
        )
    return files


def prepare(
    settings: Settings,
    screen: Screen,
    begin: Callable[[], None] = lambda: None,
    decode: Decode | None = None,
) -> Ready:
    """Loads and checks task, objective, space, backbone and images; writes only to the cache.

    Args:
        settings: of the run.
        screen: for bars and warnings.
        begin: called when what is quickly found wrong is not wrong, and slow things follow.
        decode: in the place of decoding every image.
    """
    from autopeft.backbones.weights import load_backbone
    from autopeft.training.allocator import keep_memory
    from autopeft.training.images import digest

    if settings.runner == "serial":  # then this process trains
        keep_memory()
    cache = Path(settings.runs_dir) / ".cache"
    _check_runs_dir(Path(settings.runs_dir))
    _check_machine(settings)
    check_address(settings)
    objective = load_objective(settings.objective)
    baselines.names(settings.baselines, "groups" in objective.needs)
    space = load_space(settings.space)
    register_files(space.plugins)
    _check_sampler(settings, space)
    # The synthetic task writes its images, so the backbone is tried first; a real table may be
    # wrong in many ways, and finding out must not wait for a download.
    task = None if settings.dataset == "phantom" else _load(settings, cache, objective)
    if settings.init_adapter is not None:
        adapter_hash(Path(settings.init_adapter))  # it is there
    begin()
    network = load_backbone(
        settings.backbone, settings.weights, settings.image_size, settings.offline
    )
    start = starting.opened(settings.init_adapter, settings.init_mode, network)
    network = start.network if start else network
    for line in network.warnings:
        screen.say(line)
    space = _suited(space, network.facts, start, screen)
    try_methods(space.plugins, network)
    task = task or _load(settings, cache, objective)
    if start is not None:
        start = start.for_task(task.classes, task.kind)
        space = starting.space_of(start, space)
        told = starting.notes(start, task, settings.init_adapter or "", settings.inner == "cv5")
        task = replace(task, notes=(*task.notes, *told))
    counted = _counted(task, settings, "groups" in objective.needs)
    started = time.perf_counter()
    store = (decode or _decoded)(task, settings, network.facts.image_size, screen)
    seconds = time.perf_counter() - started
    task = _with_twins(task, store)
    start = start.kept(cache) if start else None
    return Ready(
        task, objective, space, network, store.folder, digest(store), counted, seconds, start
    )


def _check_runs_dir(folder: Path) -> None:
    """That a folder can be made there, before hours are spent."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        what = disk_trouble(error) or f"nothing can be written there ({error.strerror})"
        fix = "Take a --runs-dir that can be written to."
        raise UserError(what, f"--runs-dir {folder}", fix) from None


def _check_machine(settings: Settings) -> None:
    """That one machine, where it is one, has what a worker is promised: Ray would wait for it."""
    cores = os.cpu_count() or 1
    if settings.address:
        return
    if settings.cpus_per_worker > cores:
        what = f"{settings.cpus_per_worker} CPU cores for a worker, this machine has {cores}"
        raise UserError(what, "--cpus-per-worker", "Take fewer; 0 shares what there is.")
    if settings.gpus_per_worker > 0:
        from autopeft.training.precision import find_device  # torch takes seconds to import

        if find_device() == "cpu":
            raise UserError("torch finds no GPU here", "--gpus-per-worker", "See autopeft doctor.")


def _with_twins(task: Task, store: ImageStore) -> Task:
    """The task with a note where one film lies under several patient ids."""
    from autopeft.training.images import marks

    table = task.split_table()
    if len(store.array) != len(table):  # a plan decodes a few images, and compares files instead
        return task
    judged = [s for s in ("search", "confirm", "test", *task.external) if s in set(table["split"])]
    return replace(task, notes=(*task.notes, *twin_notes(table, marks(store), judged)))


def _suited(space: Space, facts: Any, start: Start | None, screen: Screen) -> Space:
    """The space without what the backbone, or the adapter that is started from, cannot have."""
    from autopeft.methods import METHODS, canonical

    with plugins.blamed(space.plugins):
        space.check_names(METHODS)
        space, left_out = suited(space, facts, METHODS, canonical)
        space.check(facts, METHODS, True, canonical)
    free = starting.check_bound(start, space) if start else ""
    for line in filter(None, (left_out, free)):
        screen.say(line)
    return space


def _counted(task: Task, settings: Settings, needed: bool) -> CountedGroups:
    """The groups that count; ``needed``: the objective compares them."""
    counted = check_groups(task, settings, needed or bool(settings.group))
    if needed and settings.min_group < LEAST:
        raise UserError(
            f"{settings.min_group} is too small for objective {settings.objective!r}",
            "--min-group",
            f"A group is scored from {LEAST} positive and {LEAST} negative patients on.",
        )
    if needed and not task.attributes:
        raise UserError(
            f"objective {settings.objective!r} compares groups, but none is declared",
            "--group",
            "Name at least one attribute, e.g. --group sex --group age:60.",
        )
    return counted


def _decoded(task: Task, settings: Settings, size: int, screen: Screen) -> ImageStore:
    """All images of the task, decoded into the cache."""
    from autopeft.training.images import build_store

    cache, threads = Path(settings.runs_dir) / ".cache", os.cpu_count() or 1
    try:
        with screen.bar("decoding images") as bar:
            return build_store(
                task.root, task.paths.tolist(), size, settings.fit, cache, bar, threads
            )
    except UserError:
        remove_empty(cache, cache.parent)
        raise


def _load(settings: Settings, cache: Path, objective: Objective) -> Task:
    """The task, with a probe split where the objective asks who was trained on."""
    task = load_task(settings, cache)
    return cut_probe(task, settings.split_seed) if "memorization" in objective.needs else task


def _check_sampler(settings: Settings, space: Space) -> None:
    if settings.sampler == "gp" and not space.single:
        several = ", ".join(space.methods or space.parts)
        raise UserError(
            f"gp needs a space of one method; {settings.space} has {several}",
            "--sampler",
            "Take tpe, or a space with one method.",
        )


def make_setup(settings: Settings, ready: Ready, study: Study | None = None) -> Setup:
    """What workers get. What depends on the machine is decided at the first start and kept."""
    machine = study.fact("machine") if study is not None else None
    if machine is None:
        machine = look_at_machine(settings, ready.network, len(ready.task.classes))
        if study is not None:
            study.fix("machine", machine)
    task, facts = ready.task, ready.network.facts
    return Setup(
        kind=task.kind,
        classes=task.classes,
        backbone=settings.backbone,
        weights=settings.weights,
        weights_sha256=facts.sha256,
        image_size=facts.image_size,
        fit=settings.fit,
        images=str(ready.images.resolve()),
        cache=str((Path(settings.runs_dir) / ".cache").resolve()),
        run_dir=str(settings.run_dir.resolve()),
        rows={split: task.rows(split) for split in task.inner},
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        views=settings.views,
        precision=machine["precision"],
        threads=machine["threads"],
        seed=settings.seed,
        offline=settings.offline,
        cache_bytes=cache_bytes(settings),
        plugins=ship(ready.space.plugins),
        device=machine.get("device", "cpu"),  # older runs had no choice
        micro_batch=machine.get("micro_batch", 0),
        **(starting.placed(ready.start) if ready.start else {}),
    )


def make_audience(settings: Settings, ready: Ready, setup: str) -> Audience:
    """What the driver may look at so far: no test rows."""
    splits = dict.fromkeys(("train", "search", "confirm", *ready.task.inner))
    rows: dict[str, Rows] = {s: ready.task.rows(s) for s in splits}
    return Audience(
        settings.run_dir,
        ready.task.classes,
        ready.task.kind,
        rows,
        {a: g for a, g in ready.counted.groups.items() if len(g) > 1},
        settings.margin,
        setup,
        settings.epochs,
        dict(ready.counted.labels),
        rows["train"].take(subsample(rows, settings.seed)) if PROBE in rows else None,
        folds=fold_rows(rows) if ready.folds else (),
    )
