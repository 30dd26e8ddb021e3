"""--stream and --backlog: the same for whatever replays load, real or simulated."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from omniserve.bench.load.stream_fields import Fields
from omniserve.bench.load.stream_source import lengths_of_trace, timed_trace
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.load.target import TargetInfo
from omniserve.bench.run_record import StreamInfo
from omniserve.bench.trace.trace import Trace, TraceRequest
from omniserve.bench.trace.transform import with_tier
from omniserve.errors import ConfigError

DEFAULT_STREAM = "name=chat,trace=sample:azure-conv,rate=1,max_prompt=512,max_output=64"
DEFAULT_BACKLOG = "name=batch,requests=8,prompt=192-320,output=64-192"

STREAM_HELP = (
    "requests at a trace's own times: key=value,key=value with trace=FILE, sample:NAME or "
    "synth:RECIPE, and, where wanted, name, model, tier (else the trace's, else the first of the "
    "class), class (ls or be), ttft_ms and tpot_ms "
    "(objectives; else the tier's), rate (mean requests per second, by scaling time) or speed "
    "(factor on time), start_s, end_s (part of the trace), max_prompt, max_output (tokens), "
    "body.KEY (for the body of OpenAI requests); may be repeated"
)
BACKLOG_HELP = (
    "a number of requests that are always with the server: key=value,key=value with requests=N, "
    "prompt and output (tokens, N or LOW-HIGH) or trace for their lengths, and, where wanted, "
    "name, model, tier, class, ttft_ms, tpot_ms, max_prompt, max_output, body.KEY; may be repeated"
)
_ROLES = {"latency_sensitive": "priority", "best_effort": "flex"}
"""What a stream asks for where no tier is named: the first of its class."""
_STREAM_KEYS = (
    "name, trace, model, tier, class, ttft_ms, tpot_ms, rate, speed, start_s, end_s, max_prompt, "
    "max_output, body.KEY"
)
_BACKLOG_KEYS = (
    "name, requests, prompt, output, trace, model, tier, class, ttft_ms, tpot_ms, max_prompt, "
    "max_output, body.KEY"
)
NUM_LENGTHS = 256
"""Requests of a backlog without a trace; then it begins again, with other tokens."""
DEFAULT_PROMPT, DEFAULT_OUTPUT = (256, 256), (128, 128)
DEFAULT_CONCURRENCY = 8
MAX_CONCURRENCY = 10_000
"""Requests of a backlog; each has a connection of its own."""


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --stream and --backlog, both repeatable; read by `streams_of`."""
    parser.add_argument("--stream", action="append", default=[], metavar="FIELDS", help=STREAM_HELP)
    parser.add_argument(
        "--backlog",
        action="append",
        default=[],
        metavar="FIELDS",
        help=f"{BACKLOG_HELP}. Without both options: --stream {DEFAULT_STREAM} "
        f"--backlog {DEFAULT_BACKLOG}",
    )


def streams_of(
    streams: Sequence[str], backlogs: Sequence[str], *, total_s: float, seed: int
) -> list[Stream]:
    """What --stream and --backlog say, for a run of `total_s` with its warm-up.

    Raises ConfigError or TraceError. Models, and objectives that are not given, stay open:
    `with_objectives` fills in the latter, the run the former.
    """
    if not streams and not backlogs:
        streams, backlogs = [DEFAULT_STREAM], [DEFAULT_BACKLOG]
    parsed: list[Stream] = []
    for text in streams:
        parsed.append(_trace_stream(text, _name("chat", len(parsed)), total_s, seed))
    for place, text in enumerate(backlogs):
        parsed.append(_backlog(text, _name("batch", place), seed))
    names = [stream.info.name for stream in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"name: two streams are called {name!r}: give them names that differ")
    return parsed


def with_objectives(streams: Sequence[Stream], info: TargetInfo) -> list[Stream]:
    """Streams without objectives of their own get those of their tiers."""
    return [_with_objectives(stream, info) for stream in streams]


def _with_objectives(stream: Stream, info: TargetInfo) -> Stream:
    own = stream.info
    tier = info.tier(own.model, own.tier)
    if tier is None or own.ttft_ms is not None or own.tpot_ms is not None:
        return stream
    return replace(stream, info=replace(own, ttft_ms=tier.ttft_ms, tpot_ms=tier.tpot_ms))


def _name(default: str, place: int) -> str:
    return default if place == 0 else f"{default}-{place + 1}"


def _trace_stream(text: str, name: str, total_s: float, seed: int) -> TraceStream:
    fields = Fields("--stream", text)
    is_tier_given = fields.has("tier")
    info = _info(fields, name, "latency_sensitive", is_open_loop=True)
    trace = timed_trace(fields, total_s, seed)
    extra_body = fields.extra_body()
    fields.done(_STREAM_KEYS)
    if is_tier_given:
        trace = with_tier(trace, info.tier)
    return TraceStream(info, trace, extra_body)


def _backlog(text: str, name: str, seed: int) -> BacklogStream:
    fields = Fields("--backlog", text)
    info = _info(fields, name, "best_effort", is_open_loop=False)
    concurrency = fields.whole_number("requests", MAX_CONCURRENCY) or DEFAULT_CONCURRENCY
    prompt = fields.token_range("prompt", DEFAULT_PROMPT)
    output = fields.token_range("output", DEFAULT_OUTPUT)
    if fields.has("trace"):
        lengths = lengths_of_trace(fields, NUM_LENGTHS, seed)
    else:
        lengths = _lengths(prompt, output, f"{seed} {info.name}")
    extra_body = fields.extra_body()
    fields.done(_BACKLOG_KEYS)
    return BacklogStream(info, lengths, concurrency, extra_body)


def _info(
    fields: Fields,
    name: str,
    service_class: Literal["latency_sensitive", "best_effort"],
    *,
    is_open_loop: bool,
) -> StreamInfo:
    service_class = fields.service_class(service_class)
    return StreamInfo(
        name=fields.text("name", name),
        service_class=service_class,
        model=fields.text("model"),
        tier=fields.text("tier") or _ROLES[service_class],
        ttft_ms=fields.number("ttft_ms"),
        tpot_ms=fields.number("tpot_ms"),
        is_open_loop=is_open_loop,
    )


def _lengths(prompt: tuple[int, int], output: tuple[int, int], seed: str) -> Trace:
    draw = random.Random(seed)
    requests = [
        TraceRequest(0.0, draw.randint(*prompt), draw.randint(*output)) for _ in range(NUM_LENGTHS)
    ]
    texts = ["-".join(str(end) for end in sorted(set(ends))) for ends in (prompt, output)]
    return Trace(f"prompts of {texts[0]}, outputs of {texts[1]} tokens", tuple(requests))
