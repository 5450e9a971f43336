"""A search from Python, small enough to watch, on synthetic films.

python examples/search_from_python.py
"""

import sys
from pathlib import Path

import autopeft


def main(runs: str = "runs") -> None:
    result = autopeft.search(
        "phantom",
        data_option={"patients": 60, "size": 32, "contrast": 2},
        image_size=28,
        objective=str(Path(__file__).with_name("own_objective.py")),
        trials=3,
        epochs=2,
        confirm=1,
        seeds=1,
        min_group=2,
        baselines=("linear_probe", "lora_r8"),
        runs_dir=runs,
    )
    print(result.verdict)
    print(result.trials[["title", "state", "auroc", "trainable_params"]])
    print("shipped adapter:", result.best.config["strata"])

    model = result.best.load()  # normalized pixels [B, 3, 28, 28] -> logits [B, 1]
    print(type(model).__name__, "is ready")


if __name__ == "__main__":
    main(*sys.argv[1:])
