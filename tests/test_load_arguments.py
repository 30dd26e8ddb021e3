"""--stream and --backlog."""

from pathlib import Path

import pytest

from omniserve.bench.load.addresses import Addresses
from omniserve.bench.load.stream_arguments import streams_of, with_objectives
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.load.target import ModelInfo, TargetInfo, TierInfo
from omniserve.bench.run_record import StreamInfo
from omniserve.bench.trace.formats.read_write import write_trace
from omniserve.bench.trace.trace import Trace, TraceRequest
from omniserve.bench.trace.transform import with_tier
from omniserve.errors import ConfigError

TRACE = Trace(
    "mine",
    tuple(TraceRequest(at_s, 100 + at_s, 10 + at_s) for at_s in range(0, 100, 2)),
)


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    write_trace(TRACE, path)
    return path


def one(stream: str = "", backlog: str = "", seed: int = 0) -> Stream:
    (parsed,) = streams_of(
        [stream] if stream else [], [backlog] if backlog else [], total_s=60, seed=seed
    )
    return parsed


def test_a_file_is_replayed_as_it_is(trace_path: Path) -> None:
    stream = one(f"trace={trace_path}")
    assert isinstance(stream, TraceStream)
    assert stream.trace.requests == TRACE.requests
    assert stream.info == StreamInfo("chat", "latency_sensitive", "", "priority")


def test_fields_are_taken_over(trace_path: Path) -> None:
    stream = one(
        f"trace={trace_path}, name=code,model=m,tier=gold,class=be,ttft_ms=250.5,tpot_ms=20,"
        "body.priority=5,body.user=me"
    )
    assert stream.info == StreamInfo("code", "best_effort", "m", "gold", 250.5, 20)
    assert stream.extra_body == {"priority": 5, "user": "me"}


def test_rate_and_speed_scale_time_and_keep_every_request(trace_path: Path) -> None:
    doubled = one(f"trace={trace_path},speed=2")
    # 50 requests in 98 s are 0.51 a second.
    at_two = one(f"trace={trace_path},rate=2")
    assert isinstance(doubled, TraceStream)
    assert isinstance(at_two, TraceStream)
    assert [request.arrival_s for request in doubled.trace] == list(range(50))
    assert len(at_two.trace) == 50
    assert at_two.trace.duration_s == pytest.approx(25)


def test_a_part_is_cut_before_time_is_scaled_and_lengths_are_clipped(trace_path: Path) -> None:
    stream = one(f"trace={trace_path},start_s=10,end_s=16,speed=2,max_prompt=112,max_output=21")
    assert isinstance(stream, TraceStream)
    assert stream.trace.requests == (
        TraceRequest(0, 110, 20),
        TraceRequest(1, 112, 21),
        TraceRequest(2, 112, 21),
    )


def test_the_rate_is_that_of_the_part(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    times = [*range(0, 100, 10), *range(100, 110)]
    write_trace(Trace("two", tuple(TraceRequest(at_s, 10, 10) for at_s in times)), path)
    stream = one(f"trace={path},start_s=100,rate=5")
    assert isinstance(stream, TraceStream)
    # Ten requests in 9 s.
    assert stream.trace.duration_s == pytest.approx(2.0)


def test_a_recipe_is_as_long_as_the_run_and_has_the_rate_it_is_told() -> None:
    stream = one("trace=synth:azure-conv,rate=5")
    assert isinstance(stream, TraceStream)
    assert 240 <= len(stream.trace) <= 360
    assert 45 <= stream.trace.duration_s <= 60
    assert stream == one("trace=synth:azure-conv,rate=5")
    assert stream != one("trace=synth:azure-conv,rate=5", seed=1)


def test_a_backlog_has_lengths_in_its_ranges() -> None:
    stream = one(backlog="requests=3,prompt=10-20,output=7,tier=batch")
    assert isinstance(stream, BacklogStream)
    assert stream.concurrency == 3
    assert {request.prompt_tokens for request in stream.lengths} == set(range(10, 21))
    assert {request.output_tokens for request in stream.lengths} == {7}
    assert stream.info == StreamInfo("batch", "best_effort", "", "batch", is_open_loop=False)


def test_a_backlog_may_take_its_lengths_from_a_trace(trace_path: Path) -> None:
    stream = one(backlog=f"trace={trace_path},max_output=30")
    assert isinstance(stream, BacklogStream)
    assert [request.output_tokens for request in stream.lengths][:3] == [10, 12, 14]
    assert max(request.output_tokens for request in stream.lengths) == 30


def test_without_any_there_is_chat_beside_a_backlog() -> None:
    chat, batch = streams_of([], [], total_s=60, seed=0)
    assert (chat.info.tier, batch.info.tier) == ("priority", "flex")
    assert isinstance(chat, TraceStream)
    assert isinstance(batch, BacklogStream)


def test_unnamed_streams_get_names_of_their_own(trace_path: Path) -> None:
    trace = f"trace={trace_path}"
    streams = streams_of([trace, trace], ["requests=1", "requests=2"], total_s=1, seed=0)
    assert [stream.info.name for stream in streams] == ["chat", "chat-2", "batch", "batch-2"]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ("chat", "--stream 'chat': 'chat' is not key=value"),
        ("name=a,name=b", "--stream 'name=a,name=b': name is given twice"),
        ("name=a", "--stream: trace: '' is not allowed; allowed: FILE, sample:NAME or synth:"),
        ("trace=sample:azure-conv,rate=0", "--stream: rate: '0' is not allowed; .* above 0"),
        ("trace=sample:azure-conv,rate=nan", "--stream: rate: 'nan' is not allowed"),
        ("trace=sample:azure-conv,class=gold", "--stream: class: 'gold' is not .*allowed: ls, be"),
        ("trace=sample:azure-conv,depth=3", "--stream: depth: unknown field; allowed: name, "),
        ("trace=sample:azure-conv,max_prompt=0", "--stream: max_prompt: '0' is not allowed"),
        ("trace=sample:mars", "sample: 'mars' is not allowed; allowed: azure-conv"),
        ("trace=synth:mars", "mars"),
        ("trace=/nowhere/at/all.csv", "/nowhere/at/all.csv"),
    ],
)
def test_a_stream_that_is_wrong_is_told_so(stream: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one(stream)


@pytest.mark.parametrize(
    ("backlog", "message"),
    [
        ("requests=0", "--backlog: requests: '0' is not allowed; allowed: a whole number from 1"),
        ("prompt=20-10", "--backlog: prompt: '20-10' is not allowed; allowed: N or LOW-HIGH"),
        ("output=x", "--backlog: output: 'x' is not allowed"),
        ("rate=3", "--backlog: rate: unknown field; allowed: name, requests"),
    ],
)
def test_a_backlog_that_is_wrong_is_told_so(backlog: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one(backlog=backlog)


def test_a_trace_keeps_its_tiers_unless_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiers.jsonl"
    write_trace(with_tier(TRACE, "gold"), path, "omniserve")
    kept, named = one(f"trace={path}"), one(f"trace={path},tier=slow")
    assert isinstance(kept, TraceStream) and isinstance(named, TraceStream)
    assert {request.tier for request in kept.trace} == {"gold"}
    assert {request.tier for request in named.trace} == {"slow"}


def test_objectives_are_the_tiers_where_a_stream_has_none(trace_path: Path) -> None:
    model = ModelInfo("m", 10, 10, "gold")
    tiers = (TierInfo("gold", "latency_sensitive", 100, 10), TierInfo("slow", "best_effort"))
    info = TargetInfo("OmniServe", "1", "cpu", (model,), tiers)
    streams = [
        one(f"trace={trace_path}"),
        one(f"trace={trace_path},tier=priority"),
        one(f"trace={trace_path},tier=gold,ttft_ms=5"),
        one(f"trace={trace_path},tier=slow"),
        one(f"trace={trace_path},tier=unheard-of"),
    ]
    found = [
        (stream.info.ttft_ms, stream.info.tpot_ms) for stream in with_objectives(streams, info)
    ]
    assert found == [(100, 10), (100, 10), (5, None), (None, None), (None, None)]


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        (Addresses(grpc="somewhere"), "--grpc somewhere: the port is not a number"),
        (Addresses(grpc="localhost:1", over="http"), "--over http: needs --http too"),
        (Addresses(http="http://localhost:1", over="grpc"), "--over grpc: needs --grpc too"),
    ],
)
def test_addresses_that_are_wrong_are_told_so(addresses: Addresses, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        addresses.checked()


@pytest.mark.parametrize(
    ("backlog", "said"),
    [
        ("requests=1000000000", "requests: '1000000000' is not allowed; allowed: .* 1 to 10000"),
        ("requests=2,prompt=1-99999999999", "prompt: .* allowed: N or LOW-HIGH"),
    ],
)
def test_what_would_fill_the_memory_is_refused(backlog: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        one(backlog=backlog)


def test_two_streams_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two streams are called 'a'"):
        streams_of([], ["name=a,requests=1", "name=a,requests=2"], total_s=60, seed=0)
