from hypothesis import given
from hypothesis import strategies as st

from autopeft.metrics.front import Front, select_front

values = st.one_of(st.none(), st.integers(0, 4).map(float))


@given(
    table=st.lists(st.tuples(values, values, st.sampled_from([0.0, 0.0, 1.0, 2.0])), max_size=9),
    directions=st.tuples(*[st.sampled_from(["maximize", "minimize"])] * 2),
)
def test_front_equals_brute_force(table, directions):
    rows, excess = [t[:2] for t in table], [t[2] for t in table]

    def better(a, b, direction):
        return a > b if direction == "maximize" else a < b

    def dominates(a, b):
        some = any(better(x, y, d) for x, y, d in zip(a, b, directions, strict=True))
        none = not any(better(y, x, d) for x, y, d in zip(a, b, directions, strict=True))
        return some and none

    known = [i for i, r in enumerate(rows) if None not in r]
    feasible = [i for i in known if excess[i] == 0]
    least = min((excess[i] for i in known), default=0)
    pool = feasible or [i for i in known if excess[i] == least]
    expected = [i for i in pool if not any(dominates(rows[j], rows[i]) for j in pool)]
    assert select_front(rows, excess, directions) == Front(tuple(expected), bool(feasible))
