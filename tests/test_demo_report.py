"""The report page: well-formed, self-contained, and with the numbers of the run."""

import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from demo_builders import make_result, make_trace
from hypothesis import given
from hypothesis import strategies as st

from omniserve.demo.measure import RequestTrace
from omniserve.demo.next_steps import Step, next_steps
from omniserve.demo.options import Addresses, DemoOptions
from omniserve.demo.report import render_report, write_report
from omniserve.demo.result import DemoResult
from omniserve.demo.svg import (
    HEIGHT,
    WIDTH,
    Mark,
    Series,
    line_chart,
    linear_axis,
    log_axis,
    stacked_chart,
    steps,
    time_axis,
)
from omniserve.demo.text import format_ms, format_share

SERVING = Addresses("127.0.0.1:50051", "127.0.0.1:8000")


def parsed_page(result: DemoResult) -> ElementTree.Element:
    return ElementTree.fromstring(render_report(result, steps_of(result)))


def steps_of(result: DemoResult) -> list[Step]:
    return next_steps(result.options, SERVING, result.served.model, "fast")


def texts(element: ElementTree.Element, tag: str) -> list[str]:
    return ["".join(found.itertext()) for found in element.iter(tag)]


def mixed_traces() -> list[RequestTrace]:
    chance = random.Random(5)
    fast = [
        make_trace(sent_s=at / 5, ttft_s=chance.uniform(0.05, 0.6), num_tokens=40)
        for at in range(40)
    ]
    slow = [make_trace("slow", at, chance.uniform(0.5, 3), 0.2, 30) for at in range(9)]
    return [*fast, *slow, make_trace("slow", 9, num_tokens=0, outcome="cut_off")]


def points_of(chart: ElementTree.Element) -> list[tuple[float, float]]:
    found = []
    for shape in (*chart.iter("polyline"), *chart.iter("polygon")):
        for pair in shape.attrib["points"].split():
            x, y = pair.split(",")
            found.append((float(x), float(y)))
    return found


def test_the_table_holds_the_numbers_of_the_summaries() -> None:
    result = make_result(*mixed_traces())
    table = next(parsed_page(result).iter("table"))
    rows = [texts(row, "td") for row in table.iter("tr")][1:]
    fast, slow = result.summaries
    assert len(rows) == 2
    assert rows[0][:6] == ["fast", "latency-sensitive", "40", "40", "0", "0"]
    assert rows[1][:6] == ["slow", "best-effort", "10", "9", "0", "1"]
    for row, summary in zip(rows, (fast, slow), strict=True):
        expected = [summary.ttft_p50_ms, summary.ttft_p99_ms, summary.tpot_p50_ms]
        assert row[6:9] == [format_ms(value) for value in expected]
    assert fast.share_within is not None
    assert 0 < fast.share_within < 1
    assert rows[0][10] == f"{100 * fast.share_within:.1f} %"
    assert rows[1][10] == "-"


def test_every_chart_is_there_and_keeps_inside_its_frame() -> None:
    page = parsed_page(make_result(*mixed_traces()))
    charts = list(page.iter("svg"))
    assert [len(points_of(chart)) > 0 for chart in charts] == [True] * 6
    for chart in charts:
        assert chart.attrib["aria-label"]
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points_of(chart))
    assert "objective 500 ms" in texts(charts[0], "text")
    assert "objective 100 ms" in texts(charts[1], "text")


def test_the_page_needs_nothing_else() -> None:
    text = render_report(make_result(*mixed_traces()), [])
    assert "<script" not in text
    assert not re.search(r"(src|href|@import|url\()", text)


def test_what_others_wrote_cannot_become_markup() -> None:
    result = make_result(make_trace(outcome="failed", error="<script>alert('&')</script>"))
    page = parsed_page(result)
    assert list(page.iter("script")) == []
    assert "fast: <script>alert('&')</script>" in texts(page, "td")
    assert "m<1>" in "".join(page.itertext())


def test_failures_are_listed_with_their_number() -> None:
    failed = [make_trace(outcome="failed", error="gRPC UNAVAILABLE: gone") for _ in range(3)]
    result = make_result(make_trace(), *failed)
    assert result.errors() == {"fast: gRPC UNAVAILABLE: gone": 3}
    assert "Failed requests: 3" in texts(parsed_page(result), "h2")


@pytest.mark.parametrize(
    "traces",
    [
        [],
        [make_trace()],
        [make_trace(num_tokens=0, outcome="cut_off")],
        [make_trace("slow", num_tokens=1, outcome="cut_off")],
        [make_trace(ttft_s=0.0, tpot_s=0.0)],
    ],
)
def test_a_run_with_hardly_anything_has_a_report_too(traces: list[RequestTrace]) -> None:
    parsed_page(make_result(*traces, has_status=False))


def test_the_report_replaces_an_older_one_at_once(tmp_path: Path) -> None:
    path = tmp_path / "demo.html"
    path.write_text("old")
    write_report(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "demo.html"
    path.mkdir()
    with pytest.raises(OSError):
        write_report(path, "new")
    assert list(tmp_path.iterdir()) == [path]


def test_next_steps_tell_of_a_daemon_that_will_be_there() -> None:
    own = next_steps(DemoOptions(), SERVING, "demo", "interactive")
    assert own[0].code.startswith("make serve")
    attached = next_steps(DemoOptions(attach=SERVING), SERVING, "demo", "interactive")
    assert not any("serve" in step.code.split() for step in attached)
    for step in own:
        if step.code.startswith(("from", "import")):
            compile(step.code, step.title, "exec")
    assert any(SERVING.grpc in step.code for step in own)
    assert sum(SERVING.http in step.code for step in own) == 3


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


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (1.0, "100 %"), (0.9999, "99.9 %"), (0.5, "50.0 %")]
)
def test_only_all_requests_are_called_100_percent(share: float | None, text: str) -> None:
    assert format_share(share) == text
