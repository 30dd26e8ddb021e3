"""What a comparison sends."""

import pytest
from colocate_builders import BACKLOG, NUM_BE, make_scene, make_trace, make_workload
from hypothesis import given
from hypothesis import strategies as st

from omniserve.bench.colocate.contenders import PLAIN, contenders
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.workload import excerpt, mean_rate, spread_lengths
from omniserve.bench.load.streams import BacklogStream, TraceStream


@given(rate=st.floats(0.1, 50), start_s=st.floats(0, 500), length_s=st.floats(20, 60))
def test_an_excerpt_has_the_rate_that_is_asked_for(
    rate: float, start_s: float, length_s: float
) -> None:
    chosen = excerpt(make_trace(), rate, start_s, length_s)
    # Arrivals at even distances: their number is off by one at most at either end.
    assert abs(len(chosen) - rate * length_s) <= 2
    times = [request.arrival_s for request in chosen]
    assert times == sorted(times)
    assert all(0 <= at_s < length_s for at_s in times)


def test_excerpts_side_by_side_are_the_excerpt_of_both() -> None:
    whole = excerpt(make_trace(), 3.0, 0.0, 40.0)
    parts = [excerpt(make_trace(), 3.0, start_s, 10.0) for start_s in (0.0, 10.0, 20.0, 30.0)]
    lengths = [request.output_tokens for part in parts for request in part]
    assert lengths == [request.output_tokens for request in whole]


def test_time_is_scaled_and_nothing_left_out() -> None:
    trace = make_trace()
    chosen = excerpt(trace, 2 * mean_rate(trace), 0.0, 9.9)
    assert [each.prompt_tokens for each in chosen] == [each.prompt_tokens for each in trace]
    assert chosen.requests[7].arrival_s == pytest.approx(trace.requests[7].arrival_s / 2)


@pytest.mark.parametrize("number", [1, 2, 5, 8, 9])
def test_few_lengths_stand_for_all(number: int) -> None:
    trace = make_trace(num=41)
    few = spread_lengths(trace, number)
    prompts = sorted(each.prompt_tokens for each in few)
    assert len(set(prompts)) == number
    # The middle one is the trace's median, or its two neighbours surround it.
    median = trace.requests[20].prompt_tokens
    assert prompts[(number - 1) // 2] <= median <= prompts[number // 2]


def test_all_contenders_get_the_same_requests() -> None:
    workload, scene = make_workload(), make_scene(be_in_kv=NUM_BE)
    objectives = Objectives(100.0, 20.0)
    seen = []
    for contender in contenders(scene, NUM_BE, with_vllm=True)[1:]:
        streams = workload.streams(scene, contender, 2.0, 1, objectives)
        (_, ls), (_, be) = streams["LS"], streams["BE"]
        assert isinstance(ls, TraceStream)
        assert isinstance(be, BacklogStream)
        assert (ls.info.ttft_ms, ls.info.tpot_ms) == (100.0, 20.0)
        seen.append((ls.trace, be.lengths, be.concurrency))
    assert all(each == seen[0] for each in seen)


def test_rounds_differ() -> None:
    workload = make_workload()
    first, second = (workload.be_lengths(index, 0, NUM_BE) for index in (0, 1))
    assert first != second
    assert first == workload.be_lengths(0, 0, NUM_BE)


def test_best_effort_lengths_are_around_their_means_and_fit_the_model() -> None:
    lengths = make_workload().be_lengths(0, 0, NUM_BE)
    settled = lengths.requests[NUM_BE:]
    mean = sum(each.output_tokens for each in settled) / len(settled)
    assert mean == pytest.approx(BACKLOG.output_tokens, rel=0.1)
    begun = lengths.requests[:NUM_BE]
    # A part of the output of those that had begun is in the prompt.
    assert max(each.prompt_tokens for each in begun) > 1.5 * BACKLOG.prompt_tokens
    assert min(each.output_tokens for each in begun) < 0.5 * BACKLOG.output_tokens
    longest = max(each.prompt_tokens + each.output_tokens for each in lengths)
    assert longest <= BACKLOG.longest_tokens


def test_unloaded_requests_go_one_at_a_time() -> None:
    server, stream = make_workload().unloaded(make_scene(), PLAIN)
    assert server == PLAIN
    assert isinstance(stream, BacklogStream)
    assert stream.concurrency == 1
