"""A whole run, against servers in this process."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from load_builders import (
    ScriptedTarget,
    answer_at_once,
    batch_stream,
    chat_stream,
    never_answer,
)

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.precise_timer import PreciseTimer
from omniserve.bench.load.progress import Progress
from omniserve.bench.load.run import LoadRun, run_load
from omniserve.bench.load.stream_load import RETRY_PAUSE_S
from omniserve.bench.load.streams import Stream
from omniserve.bench.load.target import (
    ClockKey,
    ClockReading,
    Latencies,
    OnTokens,
    RequestFailed,
    RequestRejected,
    StatusReading,
    TokenRequest,
)
from omniserve.bench.run_record import RequestRecord, RunRecord, ServerClock
from omniserve.errors import ConfigError

SHORT = LoadOptions(duration_s=0.125, warm_up_s=0.0, drain_s=60, progress_interval_s=0.03)
CUT_OFF_AT_ONCE = replace(SHORT, drain_s=0.05)
UNTIL_CANCELLED = replace(SHORT, duration_s=3600)


def of_stream(record: RunRecord, name: str) -> list[RequestRecord]:
    return [request for request in record.requests if request.stream == name]


async def run_until(run: LoadRun, is_enough: Callable[[], bool]) -> RunRecord:
    """Cancels it then."""
    running = asyncio.create_task(run.run())
    async with asyncio.timeout(60):
        while not is_enough():
            await asyncio.sleep(0.005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    return run.record()


@pytest.mark.asyncio
async def test_every_request_is_recorded_with_all_its_tokens() -> None:
    target = ScriptedTarget()
    record = await run_load(target, [chat_stream([0.0, 0.05, 0.05, 0.1])], SHORT)
    assert record.target == "scripted 1 on nothing"
    assert [stream.model for stream in record.streams] == ["demo"]
    assert [request.index for request in record.requests] == [0, 1, 2, 3]
    for request in record.requests:
        assert request.outcome == "done"
        assert request.ended_s is not None
        assert len(request.token_times_s) == request.max_tokens == 3
        times = [request.scheduled_s, request.sent_s, *request.token_times_s, request.ended_s]
        assert times == sorted(times)
    assert [request.scheduled_s for request in record.requests] == [0.0, 0.05, 0.05, 0.1]


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_slows_nothing_down() -> None:
    target = ScriptedTarget(never_answer)
    stream = chat_stream([place / 400 for place in range(40)])
    record = await run_load(target, [stream], CUT_OFF_AT_ONCE)
    assert len(record.requests) == target.most_running == 40
    assert {request.outcome for request in record.requests} == {"cut_off"}
    assert target.num_running == 0


@pytest.mark.asyncio
async def test_a_request_may_end_after_the_measured_part() -> None:
    async def answer_late(request: TokenRequest, on_tokens: OnTokens) -> int:
        await asyncio.sleep(0.15)
        return await answer_at_once(request, on_tokens)

    record = await run_load(ScriptedTarget(answer_late), [chat_stream([0.1])], SHORT)
    (request,) = record.requests
    assert request.outcome == "done"
    assert request.token_times_s[0] > record.duration_s


@pytest.mark.asyncio
async def test_what_warms_up_has_negative_times_and_what_comes_too_late_is_not_sent() -> None:
    answered_s: list[tuple[float, float]] = []

    async def answer(request: TokenRequest, on_tokens: OnTokens) -> int:
        before_s = time.monotonic()
        num_tokens = await answer_at_once(request, on_tokens)
        answered_s.append((before_s, time.monotonic()))
        return num_tokens

    options = replace(SHORT, warm_up_s=0.125)
    stream = chat_stream([0.0, 0.125, 0.1875, 0.25, 5.0])
    begun_s = time.monotonic()
    run = LoadRun(ScriptedTarget(answer), [stream], options)
    await run.run()
    record = run.record()
    assert [request.scheduled_s for request in record.requests] == [-0.125, 0.0, 0.0625]
    # Tokens too are told from the begin of the measured part.
    assert run._began_s >= begun_s + options.warm_up_s
    for request, (before_s, after_s) in zip(record.requests, answered_s, strict=True):
        first_s = run._began_s + request.token_times_s[0]
        assert before_s - 1e-6 <= first_s <= after_s + 1e-6


@pytest.mark.asyncio
async def test_a_backlog_keeps_its_depth() -> None:
    async def answer_slowly(request: TokenRequest, on_tokens: OnTokens) -> int:
        await asyncio.sleep(0.01)
        return await answer_at_once(request, on_tokens)

    target = ScriptedTarget(answer_slowly)
    run = LoadRun(target, [batch_stream(3)], UNTIL_CANCELLED)
    record = await run_until(run, lambda: len(target.received) > 9)
    assert target.most_running == 3
    assert len(record.requests) > 9
    outcomes = [request.outcome for request in record.requests]
    assert outcomes.count("cut_off") == 3
    assert outcomes.count("done") == len(outcomes) - 3
    # In turn, and again from the beginning with other tokens.
    by_index = sorted(record.requests, key=lambda request: request.index)
    assert [request.index for request in by_index] == list(range(len(by_index)))
    assert [request.prompt_tokens for request in by_index[:4]] == [5, 7, 5, 7]
    assert len({request.token_ids for request in target.received}) == len(target.received)


@pytest.mark.asyncio
async def test_outcomes_are_told_apart() -> None:
    answers = iter("drfxscn")

    async def answer(request: TokenRequest, on_tokens: OnTokens) -> int:
        match next(answers):
            case "r":
                raise RequestRejected("too much")
            case "f":
                raise RequestFailed("broken")
            case "x":
                raise KeyError("a fault of ours")
            case "s":
                on_tokens(1)
                return 1
            case "n":
                return 3
            case "c":
                on_tokens(1)
                on_tokens(1)
                return 3
            case _:
                return await answer_at_once(request, on_tokens)

    record = await run_load(
        ScriptedTarget(answer), [chat_stream([place / 100 for place in range(7)])], SHORT
    )
    assert [(request.outcome, request.error) for request in record.requests] == [
        ("done", ""),
        ("rejected", "too much"),
        ("failed", "broken"),
        ("failed", "KeyError: 'a fault of ours'"),
        ("failed", "the answer has 1 tokens instead of 3"),
        ("done", ""),
        ("failed", "no token came"),
    ]
    # Two events held three tokens.
    assert len(record.requests[5].token_times_s) == 3


@pytest.mark.asyncio
async def test_a_backlog_whose_requests_fail_is_not_a_storm() -> None:
    async def fail(request: TokenRequest, on_tokens: OnTokens) -> int:
        raise RequestFailed("broken")

    record = await run_load(ScriptedTarget(fail), [batch_stream(2)], SHORT)
    assert len(record.requests) >= 2
    for earlier, later in zip(record.requests, record.requests[2:], strict=False):
        assert earlier.ended_s is not None
        assert later.scheduled_s - earlier.ended_s >= RETRY_PAUSE_S - 1e-3


@pytest.mark.asyncio
async def test_a_cancelled_run_leaves_nothing_behind_but_its_record() -> None:
    target = ScriptedTarget(never_answer)
    run = LoadRun(target, [chat_stream([0.0, 0.01, 50.0]), batch_stream(2)], LoadOptions(60, 0, 60))
    tasks = asyncio.all_tasks()
    record = await run_until(run, lambda: target.num_running == 4)
    assert target.num_running == 0
    assert asyncio.all_tasks() == tasks
    assert 0 < record.duration_s < 60
    assert [request.outcome for request in record.requests] == ["cut_off"] * 4


@pytest.mark.asyncio
async def test_a_run_that_is_cancelled_before_it_began_has_no_record() -> None:
    run = LoadRun(ScriptedTarget(), [chat_stream([0.0])], SHORT)
    running = asyncio.create_task(run.run())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not run.has_begun


@pytest.mark.asyncio
async def test_streams_may_go_to_servers_of_their_own() -> None:
    chat, batch = ScriptedTarget(), ScriptedTarget()
    streams: list[Stream] = [chat_stream([0.0, 0.1]), batch_stream(1)]
    record = await run_load({"chat": chat, "batch": batch}, streams, SHORT)
    assert {request.tier for request in chat.received} == {""}
    assert {request.tier for request in batch.received} == {"batch"}
    assert len(chat.received) == 2
    assert len(batch.received) == len(of_stream(record, "batch"))
    assert record.target == "scripted 1 on nothing; scripted 1 on nothing"


@pytest.mark.asyncio
async def test_the_tier_of_a_trace_holds_where_the_stream_has_none() -> None:
    stream = chat_stream([0.0, 0.05])
    first, second = stream.trace.requests
    requests = (replace(first, tier="batch"), second)
    target = ScriptedTarget()
    await run_load(target, [replace(stream, trace=replace(stream.trace, requests=requests))], SHORT)
    assert [request.tier for request in target.received] == ["batch", ""]


@pytest.mark.asyncio
async def test_requests_are_cut_to_the_model_and_that_is_noted() -> None:
    stream = chat_stream([0.0, 0.05], prompt_tokens=100, output_tokens=10)
    record = await run_load(ScriptedTarget(), [stream], replace(SHORT, seed=3))
    assert {(each.prompt_tokens, each.max_tokens) for each in record.requests} == {(54, 10)}
    assert record.facts["seed"] == 3
    assert record.facts["traces"] == {"chat": "by hand"}
    assert record.facts["notes"] == [
        "stream chat: its trace ends at 0.1 s of the run",
        "stream chat: 2 requests were cut to the model's context",
    ]


@pytest.mark.asyncio
async def test_the_server_is_asked_what_it_saw() -> None:
    key = ClockKey("demo", "interactive")
    reading = StatusReading(1, 2, 3, 4, 5, 6, 7, 8, 9)
    target = ScriptedTarget(
        clocks=[{}, {key: ClockReading(Latencies(2, 0.5))}], statuses=[reading, reading]
    )
    record = await run_load(target, [chat_stream([0.0])], SHORT)
    assert record.server_clock == [
        ServerClock("chat", 2, 250, None, None),
        ServerClock("", 2, 250, None, None),
    ]
    assert [(each.kv_used_bytes, each.num_piggybacked_tokens) for each in record.samples] == [
        (1, 9),
        (1, 9),
    ]


@pytest.mark.asyncio
async def test_the_server_is_asked_before_the_first_request_where_nothing_warms_up() -> None:
    seen: list[int] = []

    class Watched(ScriptedTarget):
        async def clock(self) -> dict[ClockKey, ClockReading]:
            seen.append(len(self.received))
            return {}

    await run_load(Watched(), [chat_stream([0.0, 0.1])], SHORT)
    assert seen == [0, 2]


@pytest.mark.asyncio
async def test_what_was_due_is_sent_though_the_timer_had_no_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PreciseTimer, "arm", lambda self, at_s: None)
    record = await run_load(ScriptedTarget(), [chat_stream([0.0, 0.05, 0.1])], SHORT)
    assert [request.outcome for request in record.requests] == ["done"] * 3


@pytest.mark.asyncio
async def test_metrics_that_cannot_be_had_do_not_end_a_run() -> None:
    class Silent(ScriptedTarget):
        async def clock(self) -> dict[ClockKey, ClockReading]:
            raise RequestFailed("no metrics today")

    record = await run_load(Silent(), [chat_stream([0.0])], SHORT)
    assert record.server_clock == []
    assert [request.outcome for request in record.requests] == ["done"]


@pytest.mark.asyncio
async def test_progress_tells_how_streams_stand() -> None:
    async def half(request: TokenRequest, on_tokens: OnTokens) -> int:
        on_tokens(1)
        return await never_answer(request, on_tokens)

    seen: list[Progress] = []
    streams: list[Stream] = [chat_stream([0.0, 0.01]), batch_stream(3)]
    targets = {"chat": ScriptedTarget(half), "batch": ScriptedTarget(never_answer)}
    run = LoadRun(targets, streams, UNTIL_CANCELLED, seen.append)
    # Until all of them were sent.
    await run_until(run, lambda: bool(seen) and seen[-1].streams[0].num_running == 2)
    chat, batch = seen[-1].streams
    assert (chat.name, chat.num_waiting) == ("chat", 0)
    assert (batch.name, batch.num_running, batch.num_waiting) == ("batch", 0, 3)
    assert chat.ttft_p50_ms is not None
    assert batch.ttft_p50_ms is None


@pytest.mark.asyncio
async def test_ended_requests_neither_run_nor_wait() -> None:
    seen: list[Progress] = []
    run = LoadRun(ScriptedTarget(), [chat_stream([0.0, 0.01])], UNTIL_CANCELLED, seen.append)
    await run_until(run, lambda: bool(seen) and seen[-1].streams[0].num_done == 2)
    (chat,) = seen[-1].streams
    assert (chat.num_running, chat.num_waiting) == (0, 0)


@pytest.mark.asyncio
async def test_a_display_that_breaks_does_not_go_unnoticed() -> None:
    def broken(progress: Progress) -> None:
        raise ZeroDivisionError

    # Shown at once, as a run that was held up has no time left after its begin.
    options = replace(SHORT, progress_interval_s=1e-6)
    with pytest.raises(ZeroDivisionError):
        await run_load(ScriptedTarget(), [chat_stream([0.0])], options, broken)


@pytest.mark.asyncio
async def test_streams_that_cannot_be_served_are_refused_before_anything_is_sent() -> None:
    target = ScriptedTarget()
    stream = chat_stream([0.0])
    other_model = replace(stream, info=replace(stream.info, model="other"))
    for streams, message in (
        ([other_model], "stream chat: model: 'other' is not served; allowed: demo"),
        ([chat_stream([0.0], tier="gold")], "tier: 'gold' is not served; allowed: interactive, b"),
        ([stream, stream], "streams: names must differ; given: chat, chat"),
        ([batch_stream(0)], "stream batch: a backlog needs at least one request"),
    ):
        with pytest.raises(ConfigError, match=message):
            await run_load(target, streams, SHORT)
    assert target.received == []
