"""The figures of a trace are right, and the table and the page show them."""

import itertools
import statistics
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniserve.bench.trace.describe import describe
from omniserve.bench.trace.facts import as_text
from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.page import render_page, write_page
from omniserve.bench.trace.samples import sample_trace
from omniserve.bench.trace.statistics import (
    autocorrelation,
    counts,
    fano,
    gap_cv,
    reused_block_share,
    spearman,
    window_gap_cvs,
)
from omniserve.bench.trace.synth.recipes import named_recipe
from omniserve.bench.trace.synth.synthesise import synthesise
from omniserve.bench.trace.trace import Trace, TraceRequest

# 12 requests in the first minute, none in the second, 4 in the third, which is the last whole one.
UNEVEN_S = [5.0 * k for k in range(12)] + [125.0, 126.0, 128.0, 132.0] + [185.0]


def trace_of(times_s: list[float], **fields: object) -> Trace:
    return Trace("made", tuple(TraceRequest(at_s, 10, 5, **fields) for at_s in times_s))  # type: ignore[arg-type]


def test_regular_arrivals_do_not_vary() -> None:
    times_s = np.linspace(0, 300, 600, endpoint=False)
    assert gap_cv(times_s) == pytest.approx(0, abs=1e-12)
    assert fano(times_s, 1.0) == fano(times_s, 60.0) == 0
    assert window_gap_cvs(times_s) == pytest.approx([0] * 5, abs=1e-12)


def test_poisson_arrivals_have_ones() -> None:
    """What all of these figures are compared with."""
    gaps_s = np.random.default_rng(0).exponential(0.2, size=40_000)
    about = describe(trace_of(np.cumsum(gaps_s).tolist())).arrivals
    assert about.rate_per_s == pytest.approx(5, rel=0.03)
    assert about.gap_cv == pytest.approx(1, abs=0.03)
    assert about.minute_gap_cv["p50"] == pytest.approx(1, abs=0.05)
    # A Fano factor of n windows has a standard error of √(2 / n); n is 133 for 60 s.
    for window, tolerance in (("1 s", 0.08), ("10 s", 0.2), ("60 s", 0.5)):
        assert about.fano[window] == pytest.approx(1, abs=tolerance)
    assert about.minute_autocorrelation == pytest.approx(0, abs=0.35)


def test_the_last_window_counts_only_if_it_is_whole() -> None:
    times_s = np.array(UNEVEN_S)
    assert counts(times_s, 60.0).tolist() == [12, 0, 4]
    assert fano(times_s, 60.0) == pytest.approx(
        statistics.pvariance([12, 0, 4]) / statistics.fmean([12, 0, 4])
    )
    about = describe(trace_of(UNEVEN_S)).arrivals
    assert about.idle_minute_share == pytest.approx(1 / 3)
    assert about.peak_over_mean_minute == pytest.approx(12 / (16 / 3))


def test_gaps_between_windows_are_of_neither() -> None:
    """Of 12 arrivals 5 s apart and a silence, the first minute has 11 gaps that do not vary."""
    assert window_gap_cvs(np.array(UNEVEN_S)) == pytest.approx([0], abs=1e-12)
    assert gap_cv(np.array(UNEVEN_S)) == pytest.approx(
        statistics.pstdev(gaps := [b - a for a, b in itertools.pairwise(UNEVEN_S)])
        / statistics.fmean(gaps)
    )


def test_autocorrelation_by_hand() -> None:
    assert autocorrelation([1, -1, 1, -1], 1) == pytest.approx(-3 / 4)
    assert autocorrelation([1, 1, 1, 1], 1) is None
    assert autocorrelation([1, 2], 1) is None


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9),
)
def test_rank_correlation(pairs: list[tuple[int, int]]) -> None:
    """Against the definition: equal values share the mean of the ranks they take up."""

    def ranks(values: list[int]) -> list[float]:
        return [
            sum(other < value for other in values) + (values.count(value) + 1) / 2
            for value in values
        ]

    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = spearman(np.array(first), np.array(second))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(statistics.correlation(ranks(first), ranks(second)))


def test_reused_blocks_by_hand() -> None:
    assert reused_block_share([(0, 1), (0, 1, 2), (5,), (0, 9)]) == pytest.approx(3 / 8)
    assert reused_block_share([(), ()]) is None
    about = describe(trace_of([0.0], prefix_hashes=(1, 2))).prefixes
    assert about is not None
    assert (about.reused_share, about.once_used_share) == (0, 1)


def test_hashes_may_have_any_length() -> None:
    about = describe(trace_of([0.0], prefix_hashes=(2**64 - 1, -(2**70)))).prefixes
    assert about is not None
    assert (about.reused_share, about.once_used_share) == (0, 1)


def test_lengths_are_of_what_succeeded() -> None:
    trace = Trace(
        "some",
        tuple(TraceRequest(k, 100 + k, 10 + k, tier="chat") for k in range(5))
        + (TraceRequest(9, 9999, 0, failed=True, tenant="acme"),),
    )
    about = describe(trace)
    assert (about.num_requests, about.num_failed) == (6, 1)
    assert (about.prompt.mean, about.prompt.smallest, about.prompt.largest) == (102, 100, 104)
    assert about.output.quantiles["p50"] == 12
    assert about.spearman == pytest.approx(1)
    assert about.output_by_prompt == ((100, 10), (101, 11), (102, 12), (103, 13), (104, 14))
    assert about.prompt_over_output == pytest.approx(510 / 60)
    assert (about.tiers, about.tenants) == ({"chat": 5}, {"acme": 1})


def test_sessions_are_counted() -> None:
    trace = Trace("s", tuple(TraceRequest(k, 1, 1, session="ab"[k % 4 == 0]) for k in range(8)))
    about = describe(trace)
    assert (about.num_sessions, about.turns_per_session) == (2, 4)


def test_coarse_times_are_spread_before_they_are_judged() -> None:
    """Three requests every 3 s look like volleys; spread, they are all but regular."""
    about = describe(trace_of([3.0 * (k // 3) for k in range(900)]))
    assert about.tick_s == 3
    assert about.arrivals.gap_cv is not None and about.arrivals.gap_cv < 1.1
    assert describe(sample_trace("azure-code")).tick_s is None


@pytest.mark.parametrize("times_s", [[0.0], [0.0] * 200, [0.0, 1.0], [7.5], [0.0, 0.001] * 30])
def test_short_traces_have_a_description_and_a_page(times_s: list[float]) -> None:
    trace = trace_of(sorted(times_s))
    about = describe(trace)
    assert about.num_requests == len(times_s)
    assert f"{len(times_s)}" in as_text([about])
    ElementTree.fromstring(render_page([trace], [about]))


def test_the_table_names_what_it_shows() -> None:
    text = as_text([describe(sample_trace("azure-conv"))])
    lines = {line[:17].strip(): line for line in text.splitlines()}
    assert "2,192" in lines["requests"]
    assert "variance over mean" in lines["Fano 1 s"]
    assert "sessions" not in lines
    assert all(len(line) <= 100 for line in text.splitlines())


def test_traces_stand_side_by_side() -> None:
    chat = synthesise(named_recipe("chat"), num_requests=200)
    text = as_text([describe(sample_trace("azure-conv")), describe(chat)])
    rows = {line.split("  ")[0]: line.split()[-2:] for line in text.splitlines()}
    assert rows["requests"] == ["2,192", "200"]
    assert rows["sessions"][0] == "-"


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    traces = [sample_trace("azure-conv"), synthesise(named_recipe("chat"), num_requests=300)]
    write_page(traces, path)
    text = path.read_text()
    root = ElementTree.fromstring(text)
    titles = [each.text for each in root.iter("h3")]
    assert titles == ["Arrivals", "Burstiness", "Gaps", "Prompts", "Outputs", "Lengths together"]
    assert len(list(root.iter("svg"))) == 6
    # A line of each trace in each of the plots of lines, and dots of each in the last one.
    assert len(list(root.iter("polyline"))) == 5 * 2
    assert "http" not in text and "<script" not in text
    with pytest.raises(TraceError, match="absent/page.html: No such file"):
        write_page(traces, tmp_path / "absent" / "page.html")


def test_names_on_the_page_are_text() -> None:
    trace = Trace("<b>&", (TraceRequest(0, 1, 1), TraceRequest(1, 1, 1, tenant="<i>")))
    text = render_page([trace], [describe(trace)])
    ElementTree.fromstring(text)
    assert "<b>" not in text and "<i>" not in text
