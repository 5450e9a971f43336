"""A simulated worker: invented learning curves and failures, to test and to measure the engine.

NOTHING HERE TRAINS ANYTHING. ``run`` has the signature of ``autopeft.trial:run`` and is executed
by the same runners, but its numbers come from formulas and a hash. No command leads here, every
outcome says ``extra["simulated"]``, and a setup that was not made for it is refused.

    from autopeft import simulated
    from autopeft.runners.serial import SerialRunner

    setup = simulated.make_setup(folder, noise=0.02, nan=0.05)
    runner = SerialRunner(setup, "autopeft.simulated:run")
    study = simulated.search(folder, runner, trials=200)

What a job answers depends on its content and the seed alone, never on time or order: two runs of
the same study give the same numbers, however many workers there are and whatever is killed.
"""

from autopeft.simulated.driver import (
    TERMS,
    Judge,
    VirtualRunner,
    evaluate,
    make_engine,
    search,
    suggest,
)
from autopeft.simulated.worker import World, curve, make_setup, run

__all__ = [
    "TERMS",
    "Judge",
    "VirtualRunner",
    "World",
    "curve",
    "evaluate",
    "make_engine",
    "make_setup",
    "run",
    "search",
    "suggest",
]
