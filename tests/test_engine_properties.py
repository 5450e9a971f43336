"""What holds for the engine whatever happens: slots, failures, late results, stops, kills."""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft import simulated
from autopeft.job import Outcome
from autopeft.schedule import epoch_ladder, fold_ladder

LADDERS = {"epochs": epoch_ladder(9), "two rungs": epoch_ladder(3), "folds": fold_ladder(2, 5)}
WORLD = {"noise": 0.03, "nan": 0.08, "oom": 0.1, "error": 0.05, "death": 0.1, "doom": 0.03}


class Life:
    """A driver whose events are drawn: it checks each job against a plain model of ASHA."""

    def __init__(self, folder, ladder, trials, seed, finalists):
        self.folder, self.ladder, self.trials = folder, ladder, trials
        self.finalists = finalists
        self.world = simulated.World(**WORLD)
        self.setup = simulated.make_setup(folder, seed=seed, **WORLD)
        self.out, self.died, self.recorded, self.stopped = [], set(), Counter(), False
        self.open()

    def open(self):
        """A start of the driver: what was out is lost."""
        self.out.clear()
        self.engine = simulated.make_engine(
            self.folder, self.ladder, self.trials, seed=1, finalists=self.finalists
        )
        self.closing = False
        if self.stopped:
            self.engine.stop("enough")

    def start(self):
        expected = self.expected()
        job = self.engine.next_job()
        if job is None:
            return False
        stretch = (job.key, job.start, job.stop)
        assert stretch not in self.recorded, "trained again after it was recorded"
        assert job.key[0] not in [j.key[0] for j in self.out], "one trial, two workers"
        entry = self.entry(job)
        assert job.part == "all" or not job.start
        assert self.ladder.stretch(entry.done, self.ladder.next(entry.done)) == (
            job.part,
            job.start,
            job.stop,
        )
        if expected is not None:
            assert entry.number == expected
        elif entry.rungs and self.ladder.rung(entry.done) is not None and not self.due(entry):
            # No place was free: then this is the end, where some of each rung go on. It begins
            # when all workers are idle.
            self.closing = self.closing or not self.out
            assert self.closing
            assert self.stopped or len(self.engine.study.entries) == self.trials
        self.out.append(job)
        return True

    def expected(self):
        """Whom the rule of ASHA promotes now; None where it is not the rule's turn."""
        entries = self.engine.study.entries
        busy = {self.entry(j).number for j in self.out}
        if self.stopped or any(self.due(e) and e.number not in busy for e in entries):
            return None
        for stop in reversed(self.ladder.stops[:-1]):
            reached = [e for e in entries if stop in e.rungs]
            alive = [e for e in reached if e.state in ("running", "complete")]
            alive.sort(key=lambda e: (-e.rungs[stop].value, e.number))
            for entry in alive[: len(reached) // 3]:
                if entry.done == stop and entry.number not in busy:
                    return entry.number
        return None

    def due(self, entry):
        """Goes on without a promotion: between rungs, after a failure, or never started."""
        if entry.state != "running":
            return False
        if entry.rungs and self.ladder.rung(entry.done) is None:
            return True
        return not entry.rungs or self.ladder.next(entry.done) in entry.attempts

    def entry(self, job):
        return next(e for e in self.engine.study.entries if e.candidate == job.candidate)

    def end(self, index):
        """A worker answers: not in the order in which jobs were given out."""
        job = self.out.pop(index)
        fate = self.world.fate(self.setup.seed, job)
        if fate in ("death", "doom", "error"):
            again = fate != "death" or job.name not in self.died
            self.died.add(job.name)
            fate = "error" if again else "ok"
        if fate == "ok":
            outcome = simulated.run(simulated.make_setup(self.folder), job)
            self.recorded[(job.key, job.start, job.stop)] += 1
        else:
            outcome = Outcome(fate, "as drawn", job.start)
        self.engine.record(job, outcome, simulated.evaluate)

    def check_end(self):
        self.engine.finish()
        states = Counter(e.state for e in self.engine.study.entries)
        assert not states["running"]
        if not self.stopped:
            assert sum(states.values()) == self.trials
        for entry in self.engine.study.entries:
            assert bool(entry.reason) == (entry.state in ("pruned", "fail"))
            assert (entry.done == self.ladder.stops[-1]) == (entry.state == "complete")
        if not self.stopped:
            assert states["complete"] >= min(self.finalists, self.trials - states["fail"])
        if not states["complete"]:  # then there was nothing that could go on
            assert all(not e.rungs or e.state == "fail" for e in self.engine.study.entries)
        trials = self.engine.study._search.get_trials(deepcopy=False)
        assert [t.state.name.lower() for t in trials] == [
            e.state for e in self.engine.study.entries
        ]
        assert set(self.recorded.values()) <= {1}


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    ladder=st.sampled_from(sorted(LADDERS)),
    trials=st.integers(1, 24),
    finalists=st.integers(1, 4),
    slots=st.lists(st.integers(0, 7), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    stop_at=st.none() | st.integers(0, 40),
    kills=st.sets(st.integers(1, 60), max_size=3),
    rng=st.randoms(use_true_random=False),
)
def test_the_engine_keeps_its_rules(ladder, trials, finalists, slots, seed, stop_at, kills, rng):
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), LADDERS[ladder], trials, seed, finalists)
        for step in range(600):
            if step == stop_at:
                life.engine.stop("enough")
                life.stopped = True
            if step in kills:
                life.open()
            free = max(1, slots[step % len(slots)]) if step > 50 else slots[step % len(slots)]
            while len(life.out) < free and life.start():
                assert life.engine.running == len(life.out) <= free
            if life.out:
                life.end(rng.randrange(len(life.out)))
            elif free:
                break
        else:
            raise AssertionError("the search does not end")
        life.check_end()
