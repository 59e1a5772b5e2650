"""Every kind of plot draws the rows it has, with intervals; files are the same every time."""

import dataclasses

import pytest

from jaxrec.benchmark import drawing
from jaxrec.experiments import plots
from jaxrec.experiments.result_table import Line


def rows(series, points):
    return [
        {"series": series, "x": x, "y": y, "y_low": y - 0.1, "y_high": y + 0.2} for x, y in points
    ]


LINES = [*rows("one", [(4, 0.3), (1, 0.1), (2, 0.2)]), *rows("two", [(1, 0.4), (8, 0.5)])]
LINES += [{"series": "one", "x": None, "y": 1.0}, {"series": "three", "other": 2}]


def plot(**changes):
    line = Line("A title", "x", "y", "x axis", "y axis")
    return dataclasses.asdict(dataclasses.replace(line, **changes))


def test_lines_join_points_in_order_with_intervals():
    axes = plots.draw(plot(log=True), LINES).axes[0]
    assert axes.get_title(loc="left") == "A title"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x axis", "y axis")
    assert axes.get_xscale() == "log"
    drawn = {c.get_label(): c for c in axes.containers}
    assert set(drawn) == {"one", "two"}
    line, _, (bars,) = drawn["one"]
    assert list(line.get_ydata()) == [0.1, 0.2, 0.3]
    ends = [tuple(segment[:, 1].round(6)) for segment in bars.get_segments()]
    assert ends == [(0.0, 0.3), (0.1, 0.4), (0.2, 0.5)]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["1", "2", "4", "8"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]


def test_an_age_of_nothing_has_a_place_on_a_logarithmic_axis():
    axes = plots.draw(plot(log=True), rows("one", [(0, 0.3), (1, 0.2), (10, 0.1)])).axes[0]
    assert axes.get_xscale() == "symlog"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "10"]
    assert axes.get_legend() is None


def test_bars_stand_beside_each_other():
    points = [
        *rows("one", [("early", 0.3), ("late", 0.1)]),
        *rows("two", [("late", 0.4), ("early", 0.2)]),
    ]
    axes = plots.draw(plot(kind="bar", zero=True), points).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["early", "late"]
    heights = {
        round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in axes.patches
    }
    assert heights == {-0.2: 0.3, 0.8: 0.1, 1.2: 0.4, 0.2: 0.2}
    assert axes.get_ylim()[0] == 0


def test_what_lies_below_zero_is_shown():
    for points in ([(1, -0.3), (2, 0.5)], [(1, 0.05), (2, 0.5)]):  # the second by its interval
        axes = plots.draw(plot(zero=True), rows("one", points)).axes[0]
        low = min(y - 0.1 for _, y in points)
        assert axes.get_ylim()[0] < low < 0
    above = plots.draw(plot(zero=True), rows("one", [(1, 0.3), (2, 0.5)])).axes[0]
    assert above.get_ylim()[0] == 0


def test_a_bar_without_another_beside_it_stands_at_its_label():
    points = [*rows("one", [("early", 0.3), ("late", 0.1)]), *rows("two", [("never", 0.2)])]
    axes = plots.draw(plot(kind="bar"), points).axes[0]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    assert middles == pytest.approx([0, 1, 2])
    assert {round(bar.get_width(), 3) for bar in axes.patches} == {0.736}


def test_heat_has_a_row_for_every_series():
    points = [
        {"component": c, "x": x, "y": c + x / 10, "part": "factors"} for c in (1, 2) for x in (1, 2)
    ]
    points.append({"part": "other", "z": 1})
    figure = plots.draw(plot(kind="heat", series="component"), points)
    (image,) = figure.axes[0].get_images()
    assert image.get_array().tolist() == [[1.1, 1.2], [2.1, 2.2]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["1", "2"]


@pytest.mark.parametrize("kind", ["line", "bar", "heat"])
def test_nothing_to_draw_is_an_empty_plot(kind):
    assert plots.draw(plot(kind=kind), []).axes[0].get_title(loc="left") == "A title"


def test_files(tmp_path):
    table = {"experiment": "tokens", "rows": LINES, "plots": [plot(), plot(log=True)]}
    plots.write(tmp_path, table)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokens.png", "tokens_2.png"]
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_rows_give_the_same_svg():
    table = {"experiment": "tokens", "rows": LINES, "plots": [plot(), plot(log=True)]}
    first, again = (drawing.svg(plots.figures(table)["tokens_2.png"]) for _ in range(2))
    assert "<svg" in first
    assert first == again
