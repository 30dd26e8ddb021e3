"""Charts: what is drawn stands where the axes say."""

import re
from typing import get_args
from xml.etree import ElementTree

import pytest
from chart_points import points_of
from hypothesis import given
from hypothesis import strategies as st

from omniserve.charts.axes import linear_axis, log_axis, time_axis
from omniserve.charts.page import (
    Card,
    cards,
    figure,
    header,
    legend,
    page,
    paragraphs,
    section,
    table,
)
from omniserve.charts.svg import Level, Look, Mark, Series, line_chart, stacked_chart, steps
from omniserve.charts.text import format_rate, format_share

LOOKS: tuple[Look, ...] = get_args(Look)


def test_marks_and_points_stand_where_the_axes_say() -> None:
    x, y = linear_axis("x", 100), linear_axis("y", 10)
    line = Series("line", "red", [(0.0, 0.0), (50.0, 5.0), (100.0, 10.0)])
    chart = ElementTree.fromstring(line_chart("t", x, y, [line], [Mark(50.0, "half")]))
    low, middle, high = points_of(chart)
    assert middle[0] == pytest.approx((low[0] + high[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((low[1] + high[1]) / 2, abs=0.1)
    assert low[0] < high[0]
    assert low[1] > high[1], "values grow upwards"
    mark = next(each for each in chart.iter("line") if each.attrib["class"] == "mark")
    assert float(mark.attrib["x1"]) == middle[0]


def test_stacked_areas_stand_on_each_other() -> None:
    x, y = time_axis("s", 2), linear_axis("n", 10)
    series = [Series("a", "red", [(0, 2), (2, 2)]), Series("b", "blue", [(0, 3), (2, 3)])]
    chart = ElementTree.fromstring(stacked_chart("t", x, y, series))
    lower, upper = (
        [tuple(map(float, pair.split(","))) for pair in shape.attrib["points"].split()]
        for shape in chart.iter("polygon")
    )
    assert upper[2:] == [lower[1], lower[0]], "the upper area begins where the lower one ends"
    height = [lower[3][1] - lower[0][1], upper[3][1] - upper[0][1]]
    assert height[1] == pytest.approx(1.5 * height[0], abs=0.2)


@given(st.floats(1e-3, 1e7))
def test_linear_axes_cover_their_values_with_few_round_ticks(high: float) -> None:
    axis = linear_axis("x", high)
    assert axis.low == 0
    assert axis.high >= high * (1 - 1e-9)
    assert 2 <= len(axis.ticks) <= 8
    assert time_axis("s", high).high == high


@given(st.lists(st.floats(1e-3, 1e6), max_size=10))
def test_log_axes_cover_their_values(values: list[float]) -> None:
    axis = log_axis("x", values)
    assert 2 <= len(axis.ticks) <= 10
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == 1


def test_steps_keep_a_value_until_the_next() -> None:
    assert steps([(0, 1), (2, 3)], until=5) == [(0, 1), (2, 1), (2, 3), (5, 3)]


def drawn(chart: str, tag: str, kind: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(chart).iter(tag)
    return [each for each in found if kind in each.attrib.get("class", "").split()]


def test_each_look_is_drawn_as_what_it_is() -> None:
    x, y = linear_axis("x", 10), linear_axis("y", 10)
    points = [(1.0, 2.0), (3.0, 4.0)]
    counts = {
        look: tuple(
            len(drawn(line_chart("t", x, y, [Series("s", "red", points, look)]), tag, kind))
            for tag, kind in (("polyline", "line"), ("polyline", "dashed"), ("path", "dots"))
        )
        for look in LOOKS
    }
    assert counts == {
        "line": (1, 0, 0),
        "dashed line": (1, 1, 0),
        "dots": (0, 0, 1),
        "line with dots": (1, 0, 1),
    }


def test_dots_stand_where_the_line_would_run() -> None:
    x, y = linear_axis("x", 10), linear_axis("y", 10)
    series = Series("s", "red", [(1.0, 2.0), (3.0, 4.0)], "line with dots")
    chart = line_chart("t", x, y, [series])
    path = drawn(chart, "path", "dots")[0].attrib["d"]
    dots = [tuple(map(float, pair.split(","))) for pair in re.findall(r"M([^h]+)h0", path)]
    assert dots == points_of(ElementTree.fromstring(chart))


def test_spreads_reach_from_low_to_high() -> None:
    x, y = linear_axis("x", 10), linear_axis("y", 10)
    series = Series("s", "red", [(5.0, 5.0)], "dots", spreads=[(5.0, 0.0, 10.0)])
    chart = line_chart("t", x, y, [series], levels=[Level(0.0, "least"), Level(10.0, "most")])
    (spread,) = drawn(chart, "line", "spread")
    least, most = drawn(chart, "line", "mark")
    assert (spread.attrib["y1"], spread.attrib["y2"]) == (least.attrib["y1"], most.attrib["y1"])
    assert spread.attrib["x1"] == spread.attrib["x2"]
    labels = [each.text for each in drawn(chart, "text", "mark-label")]
    assert labels == ["least", "most"]


def test_a_series_without_points_is_left_out() -> None:
    x, y = linear_axis("x", 10), linear_axis("y", 10)
    chart = line_chart("t", x, y, [Series("s", "red", [], look) for look in LOOKS])
    assert not drawn(chart, "polyline", "line")
    assert not drawn(chart, "path", "dots")


def test_columns_of_numbers_stand_to_the_right() -> None:
    shown = ElementTree.fromstring(table(("name", "n"), [["<a>", "-1"], ["b", "-"]]))
    cells = [(each.text, each.attrib.get("class")) for each in shown.iter("td")]
    assert cells == [("<a>", "text"), ("-1", None), ("b", "text"), ("-", None)]


def test_a_table_without_rows_keeps_its_headings() -> None:
    shown = ElementTree.fromstring(table(("name", "n"), []))
    assert [each.text for each in shown.iter("th")] == ["name", "n"]


def test_all_texts_of_a_page_are_escaped() -> None:
    wild = "<i>&</i>"
    parts = [
        *(header(wild, [wild]), cards([Card(wild, wild, wild, "good")]), legend([(wild, "red")])),
        *(paragraphs([wild]), section(wild, ""), figure(wild, wild, "")),
    ]
    whole = ElementTree.fromstring(page(wild, "".join(parts)))
    assert list(whole.iter("i")) == []
    assert "".join(whole.itertext()).count(wild) == 11


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.00"), (9.99, "9.99"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_rates_have_three_digits(value: float | None, text: str) -> None:
    assert format_rate(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (1.0, "100 %"), (0.9999, "99.9 %"), (0.5, "50.0 %")]
)
def test_only_all_requests_are_called_100_percent(share: float | None, text: str) -> None:
    assert format_share(share) == text
