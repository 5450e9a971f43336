import numpy as np
import pandas as pd
import pytest

from autopeft.data.counted import counted_groups
from autopeft.metrics.gaps import gaps
from autopeft.metrics.groups import group_table
from autopeft.metrics.intersections import counted_in, intersected

COUNTED = {"sex": ("sex=F", "sex=M"), "age": ("age<60", "age>=60")}


def simulate(table, seed=0, patients=600, classes=1):
    rng = np.random.default_rng(seed)
    y = (rng.random((patients, classes)) < 0.4).astype(float)
    sex = rng.choice(["sex=F", "sex=M", "unknown"], patients, p=[0.5, 0.4, 0.1])
    age = rng.choice(["age<60", "age>=60", "age=rare"], patients, p=[0.7, 0.25, 0.05])
    groups = {"sex": sex.astype(object), "age": age.astype(object)}
    return table(rng.normal(size=y.shape) + y, y, groups=groups)


def test_intersections_are_made_of_counted_groups(table):
    p = intersected(simulate(table), COUNTED)
    assert list(p.groups) == ["sex", "age", "sex x age"]
    for name, sex, age in zip(*(p.groups[k] for k in ("sex x age", "sex", "age")), strict=True):
        known = sex in COUNTED["sex"] and age in COUNTED["age"]
        assert name == (f"{sex} x {age}" if known else "unknown")


def test_they_are_counted_by_the_same_rule_and_shown(table):
    p = intersected(simulate(table), COUNTED)
    groups, labels = counted_in(p, ["sex x age"], 50)
    assert groups == {"sex x age": ("sex=F x age<60", "sex=M x age<60")}
    assert labels == {"sex x age": ("c0",)}
    shown = [row.group for row in group_table(p, ["sex x age"])]
    assert len(shown) == 5
    assert shown[-1] == "unknown"
    (found,) = gaps(p, groups, labels, permutations=0)
    assert found.mean.groups == groups["sex x age"]


class _Task:
    """What `counted_groups` reads of a task."""

    def __init__(self, p):
        self.classes, self.attributes, self._p = p.classes, tuple(p.groups), p

    def groups_of(self, attribute):
        return sorted(set(self._p.groups[attribute]) - {"unknown"})

    def counts(self, split):
        return pd.DataFrame(
            {
                "attribute": row.attribute,
                "group": row.group,
                "class": row.label,
                "positives": row.positives,
                "negatives": row.negatives,
            }
            for row in group_table(self._p)
        )


@pytest.mark.parametrize("min_group", [10, 30, 50, 90])
def test_the_rule_is_the_one_of_declared_groups(table, min_group):
    p = intersected(simulate(table, classes=3), COUNTED)
    target = p.target.copy()
    target[(p.groups["sex"] == "sex=F") & (np.arange(600) % 3 > 0), 0] = np.nan
    p = table(p.score, target, groups=p.groups)
    declared = counted_groups(_Task(p), min_group)
    groups, labels = counted_in(p, list(p.groups), min_group)
    assert groups == declared.groups
    assert labels == declared.labels


def test_pairs_may_be_chosen(table):
    p = simulate(table)
    q = intersected(p, COUNTED | {"age": ("age<60",)}, [("age", "sex")])
    assert set(q.groups["age x sex"]) == {"age<60 x sex=F", "age<60 x sex=M", "unknown"}
    assert counted_in(q, ["age x sex"], 10_000) == ({"age x sex": ()}, {"age x sex": ()})
