"""autopeft's rungs inside a Ray Tune experiment of your own, on synthetic films.

python examples/tune_run_rung.py

For those who have a Tune set-up already. The same as `autopeft search` it is not: here
- nothing is confirmed: Tune's best is the luckiest on the search patients, and its value is too
  high. autopeft trains the finalists again with fresh seeds and ranks them on other patients;
- no test: autopeft opens it once, for one saved adapter, beside the linear probe and LoRA r=8;
- there are no baselines, so no reference that an accurate or fair candidate must reach;
- each trial is a process that loads the backbone and the frozen features anew; autopeft's workers
  stay warm (measured: 12 small trials 51.9 s as Tune functions, 4.6 s on resident workers);
- an equal candidate is trained again, a diverged one is just an error, out of memory is the end
  of a trial, and what runs when the driver dies is lost.
"""

import sys
from pathlib import Path

import autopeft

try:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
except ImportError as error:
    raise SystemExit(f'this example needs Ray Tune ({error}): pip install "ray[tune]"') from None


def train(config, rungs):
    """One Tune trial: a candidate, rung by rung, each from the state that the last one saved."""
    candidate, outcome = rungs.candidate(config), None
    for stop in range(1, rungs.epochs + 1):
        outcome = rungs.run(candidate, stop, outcome)
        # Raises where the rung failed (NaN, out of memory): Tune then counts an error.
        numbers = rungs.measure(outcome, "auroc", "trainable_params")
        tune.report({"epoch": stop, "state": outcome.state, **numbers})


def main(runs: str = "runs") -> None:
    rungs = autopeft.open_rungs(
        "phantom",
        data_option={"patients": 60, "size": 32, "contrast": 2},
        image_size=28,
        epochs=2,
        min_group=2,
        cpus_per_worker=1,
        precision="fp32",
        runs_dir=runs,
    )
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # Workers find the packages that this process finds.
        runtime_env={"env_vars": {"PYTHONPATH": ":".join(filter(None, sys.path))}},
    )
    tuner = tune.Tuner(
        tune.with_parameters(train, rungs=rungs),
        param_space={
            "method": "lora",
            "r": tune.choice([2, 4, 8]),
            "blocks": tune.choice([2, "all"]),
            "lr": tune.loguniform(2e-4, 1e-2),
        },
        tune_config=tune.TuneConfig(
            metric="auroc",
            mode="max",
            num_samples=3,
            scheduler=ASHAScheduler("epoch", max_t=rungs.epochs, grace_period=1),
        ),
        run_config=tune.RunConfig(storage_path=str(Path(runs).resolve() / "tune"), verbose=0),
    )
    try:
        best = tuner.fit().get_best_result()
    finally:
        ray.shutdown()
    print(f"best of the search patients, not confirmed: {best.metrics['auroc']:.3f}", best.config)
    model = autopeft.load_adapter(Path(rungs.setup.run_dir) / "states" / best.metrics["state"])
    print(f"{model.candidate.title} is ready")


if __name__ == "__main__":
    main(*sys.argv[1:])
