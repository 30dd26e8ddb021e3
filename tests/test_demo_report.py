"""The report page: well-formed, self-contained, and with the numbers of the run."""

import random
import re
from xml.etree import ElementTree

import pytest
from chart_points import points_of
from demo_builders import make_result, make_trace

from omniserve.charts.svg import HEIGHT, WIDTH
from omniserve.charts.text import format_ms
from omniserve.demo.measure import Outcome, RequestTrace
from omniserve.demo.next_steps import Step, next_steps
from omniserve.demo.options import Addresses, DemoOptions
from omniserve.demo.report import render_report
from omniserve.demo.result import DemoResult

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
    ends: tuple[Outcome, ...] = ("cut_off", "refused", "refused")
    lost = [make_trace("slow", 9, num_tokens=0, outcome=outcome) for outcome in ends]
    return [*fast, *slow, *lost]


def test_the_table_holds_the_numbers_of_the_summaries() -> None:
    result = make_result(*mixed_traces())
    table = next(parsed_page(result).iter("table"))
    rows = [texts(row, "td") for row in table.iter("tr")][1:]
    fast, slow = result.summaries
    assert len(rows) == 2
    assert rows[0][:7] == ["fast", "latency-sensitive", "40", "40", "0", "0", "0"]
    assert rows[1][:7] == ["slow", "best-effort", "12", "9", "2", "0", "1"]
    for row, summary in zip(rows, (fast, slow), strict=True):
        expected = [summary.ttft_p50_ms, summary.ttft_p99_ms, summary.tpot_p50_ms]
        assert row[7:10] == [format_ms(value) for value in expected]
    assert fast.share_within is not None
    assert 0 < fast.share_within < 1
    assert rows[0][11] == f"{100 * fast.share_within:.1f} %"
    assert rows[1][11] == "-"


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
    failed = [make_trace(outcome="failed", error=f"gone for {ms} ms") for ms in range(3)]
    result = make_result(make_trace(), *failed)
    assert result.errors() == {"fast: gone for 0 ms": 3}
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
