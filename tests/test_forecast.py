"""The cost model: deeper is dearer, what is kept is not computed again, and the search is real."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_run import tiny

from autopeft import settings as settings_file
from autopeft.forecast import Costs, foresee, shape_of
from autopeft.methods import canonical
from autopeft.prepare import make_audience, prepare
from autopeft.progress import Screen
from autopeft.timing import Line, Speed, _line, _lines

SPEED = Speed(
    decode=0.01, pixels=0.001, forward=0.01, step=0.001, depth=0.02, full=0.03, job=0.1,
    score=Line(0.1, 0.02), probe=Line(0.1, 0.0001), readouts=Line(1.0, 0.02),
    simple=Line(0.1, 0.01), memory=10**9, images=64, seconds=1.0, busy=0.0, measured=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A tiny run, ready to begin."""
    values = tiny(tmp_path_factory.mktemp("runs"), trials=18, epochs=9, space="default")
    settings = settings_file.from_mapping(settings_file.complete(values), "test")
    return settings, prepare(settings, Screen(True))


def costs(ready, **changes):
    made = Costs(
        SPEED, ready[1].network.facts, train=600, scored=100, epochs=9, views=2, number=2,
        limit=10**9,
    )  # fmt: skip
    return replace(made, **changes)


def candidate(ready, blocks, method="lora", **more):
    raw = {"method": method, "blocks": blocks, "lr": 1e-3, "head_init": "random", **more}
    return canonical(raw, ready[1].network.facts)


def test_shapes(ready):
    facts = ready[1].network.facts
    half = shape_of(candidate(ready, facts.depth // 2), facts, 2)
    assert (half.kind, half.below, half.trained, half.cached) == ("adapter", 0.5, 0.5, True)
    assert not shape_of(candidate(ready, facts.depth // 2), facts, 0).cached  # always new views
    assert shape_of(candidate(ready, "all"), facts, 2).trained == 1
    assert not shape_of(candidate(ready, "all"), facts, 2).cached
    assert shape_of(candidate(ready, 1, "full"), facts, 2).kind == "full"
    probe = shape_of(canonical({"method": "linear_probe"}, facts), facts, 2)
    assert (probe.kind, probe.changed) == ("probe", 0)


def test_deeper_trainings_and_open_weights_cost_more(ready):
    def cost(blocks, method="lora"):
        made = costs(ready)
        made.rung(candidate(ready, blocks, method), 9)
        return made.rung(candidate(ready, blocks, method), 9)

    depth = ready[1].network.facts.depth
    assert cost(1) < cost(depth // 2) < cost("all") < cost("all", "full")
    by_hand = 0.1 + 9 * 600 * (0.001 + 0.02) + (9 * 600 + 100) * 0.001 + 100 * 0.01
    assert cost("all") == pytest.approx(by_hand)


def test_frozen_states_are_computed_once_while_there_is_room(ready):
    half = candidate(ready, ready[1].network.facts.depth // 2)
    made = costs(ready, views=1)
    first, second = made.rung(half, 3), made.rung(half, 3)
    assert first - second == pytest.approx((600 + 100) * (0.001 + 0.005))
    full = costs(ready, views=1, limit=10)
    assert full.rung(half, 3) == full.rung(half, 3)
    assert full.rung(half, 3) - second == pytest.approx((3 * 600 + 100) * (0.001 + 0.005))
    assert (made.bytes > 0, full.bytes) == (True, 0)


def test_with_several_views_each_epoch_meets_fewer_that_are_new(ready):
    half = candidate(ready, ready[1].network.facts.depth // 2)
    made = costs(ready, views=2)
    seconds = [made.rung(half, 1) for _ in range(4)]
    missing = [s - (0.1 + 600 * 0.011 + 100 * 0.005) for s in seconds]
    assert missing == pytest.approx([700 * 0.006, 300 * 0.006, 150 * 0.006, 75 * 0.006])


def test_the_search_that_is_played_is_the_run_s_own(ready):
    settings, made = ready
    audience = make_audience(settings, made, "setup")
    found = foresee(settings, made, audience, costs(ready), 1, 0)
    assert found.trials == len(found.shapes) == 18
    assert found.rungs > 18  # some were promoted
    assert 1 <= len(found.finished) <= 9
    again = foresee(settings, made, audience, costs(ready), 1, 0)
    assert again.seconds == found.seconds
    four = foresee(settings, made, audience, costs(ready), 4, 0)
    assert found.seconds / 5 < four.seconds < found.seconds
    short = foresee(settings, made, audience, costs(ready), 1, 0, until=found.seconds / 4)
    assert 1 <= short.trials < 18
    assert len(short.finished) == 1


def test_lines_through_what_was_measured():
    assert _line({}, 0.5) == (0.0, 0.5)
    assert _line({0.5: 0.2}, 9.0) == (0.0, 0.4)
    assert _line({0.25: 0.2, 0.5: 0.3}, 9.0) == (pytest.approx(0.1), pytest.approx(0.4))
    assert _line({0.25: 0.3, 0.5: 0.2}, 9.0) == (pytest.approx(0.3), 0.0)
    assert _line({0.25: 0.05, 0.5: 0.2}, 9.0) == (0.0, pytest.approx(0.4))


def test_a_job_has_a_part_that_does_not_grow():
    found = _lines(
        {"score": (10, 1.0), "probe": (10, 2.0)}, {"score": (50, 3.0), "probe": (50, 1.0)}
    )
    assert found["score"] == Line(pytest.approx(0.5), pytest.approx(0.05))
    assert found["score"].of(100) == pytest.approx(5.5)
    assert found["probe"] == Line(0.5, 0.01)  # noise: half of it is taken to be fixed
    assert _lines({}, {"score": (50, 3.0)})["score"] == Line(1.5, 0.03)
