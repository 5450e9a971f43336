import pytest

from autopeft.drawing import axis, figure, line, text


@pytest.mark.parametrize(
    "values", [[0.8, 0.9], [0.8713, 0.8714], [0.5], [0.0], [-3.0, 1e6], [1e-9, 2e-9]]
)
def test_an_axis_holds_its_values_and_some_round_ticks(values):
    made = axis(values, 100, 300)
    assert all(100 < made.at(v) < 300 for v in values)
    assert 2 <= len(made.ticks) <= 8
    assert all(100 <= made.at(t) <= 300 for t in made.ticks)
    labels = [made.form(t) for t in made.ticks]
    assert len(set(labels)) == len(labels)


def test_an_axis_may_run_down():
    made = axis([0.0, 1.0], 300, 34)
    assert made.at(1.0) < made.at(0.0)


def test_ticks_are_round():
    made = axis([0.81, 0.89], 0, 100)
    assert [made.form(t) for t in made.ticks] == ["0.82", "0.84", "0.86", "0.88"]


def test_text_is_escaped_and_cut():
    assert "&lt;b&gt;" in text(0, 0, "<b>")
    cut = text(0, 0, "abcdefghij", most=5)
    assert ">abcd…<" in cut
    assert "<title>abcdefghij</title>" in cut


def test_a_figure_says_what_it_shows():
    made = figure('A "title"', "what it tells", 100, [line(0, 0, 1, 1, "gr")], "groups")
    assert 'aria-label="A &quot;title&quot;. what it tells"' in made.svg
    assert "<desc>what it tells</desc>" in made.svg
