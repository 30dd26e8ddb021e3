"""All that is done before the first request is sent: servers asked, prompts made, bytes encoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.plan import RequestMaker, Supply, planned_arrivals
from omniserve.bench.load.request_runner import RequestRunner
from omniserve.bench.load.stream_load import Backlog, OpenLoop, StreamLoad
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.load.target import ModelInfo, Target, TargetInfo
from omniserve.bench.run_record import StreamInfo
from omniserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Side:
    """One server, and the streams that go to it."""

    target: Target
    info: TargetInfo
    streams: tuple[StreamInfo, ...]


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Ready to start."""

    sides: tuple[Side, ...]
    streams: tuple[StreamInfo, ...]
    loads: tuple[StreamLoad, ...]
    makers: Mapping[str, RequestMaker]
    traces: Mapping[str, str]
    notes: tuple[str, ...]

    def facts(self, options: LoadOptions) -> dict[str, Any]:
        """What the record says besides; requests are counted as clipped when they are made."""
        clipped = [
            f"stream {name}: {maker.num_clipped} requests were cut to the model's context"
            for name, maker in self.makers.items()
            if maker.num_clipped
        ]
        return {
            "seed": options.seed,
            "warm_up_s": options.warm_up_s,
            "drain_s": options.drain_s,
            "traces": dict(self.traces),
            "notes": [*self.notes, *clipped],
        }


async def prepare_run(
    targets: Target | Mapping[str, Target],
    streams: Sequence[Stream],
    options: LoadOptions,
    now_s: Callable[[], float],
) -> PreparedRun:
    """Raises RequestFailed where a server does not answer, ConfigError for what it cannot serve."""
    _check(streams)
    target_of = {
        stream.info.name: targets[stream.info.name] if isinstance(targets, Mapping) else targets
        for stream in streams
    }
    info_of = {id(target): await target.describe() for target in _distinct(target_of.values())}
    resolved = [_resolved(stream, info_of[id(target_of[stream.info.name])]) for stream in streams]
    loads: list[StreamLoad] = []
    makers: dict[str, RequestMaker] = {}
    for stream, model in resolved:
        name = stream.info.name
        target = target_of[name]
        makers[name] = RequestMaker(stream, model, target, options.seed)
        runner = RequestRunner(name, target, now_s)
        loads.append(_load(stream, makers[name], runner, options))
    return PreparedRun(
        sides=tuple(
            Side(
                target,
                info_of[id(target)],
                tuple(each.info for each, _ in resolved if target_of[each.info.name] is target),
            )
            for target in _distinct(target_of.values())
        ),
        streams=tuple(stream.info for stream, _ in resolved),
        loads=tuple(loads),
        makers=makers,
        traces={stream.info.name: _trace_name(stream) for stream in streams},
        notes=tuple(note for stream in streams for note in _notes(stream, options)),
    )


def _check(streams: Sequence[Stream]) -> None:
    names = [stream.info.name for stream in streams]
    if len(set(names)) < len(names):
        raise ConfigError(f"streams: names must differ; given: {', '.join(names)}")
    for stream in streams:
        if isinstance(stream, BacklogStream) and (stream.concurrency < 1 or not stream.lengths):
            text = "a backlog needs at least one request at a time, and a length"
            raise ConfigError(f"stream {stream.info.name}: {text}")


def _distinct(targets: Any) -> list[Target]:
    return list({id(target): target for target in targets}.values())


def _resolved(stream: Stream, info: TargetInfo) -> tuple[Stream, ModelInfo]:
    """The stream with the model that it goes to."""
    name = stream.info.name
    model = info.model(stream.info.model)
    if model is None:
        raise _not_served(name, "model", stream.info.model, [each.name for each in info.models])
    if info.tiers and info.tier(model.name, stream.info.tier) is None:
        raise _not_served(name, "tier", stream.info.tier, [each.name for each in info.tiers])
    return replace(stream, info=replace(stream.info, model=model.name)), model


def _not_served(stream: str, field: str, value: str, allowed: Sequence[str]) -> ConfigError:
    names = ", ".join(allowed) or "none"
    return ConfigError(f"stream {stream}: {field}: {value!r} is not served; allowed: {names}")


def _load(
    stream: Stream, maker: RequestMaker, runner: RequestRunner, options: LoadOptions
) -> StreamLoad:
    if isinstance(stream, TraceStream):
        return OpenLoop(runner, planned_arrivals(stream, maker, options))
    return Backlog(runner, Supply(stream, maker), stream.concurrency)


def _trace_name(stream: Stream) -> str:
    return stream.trace.name if isinstance(stream, TraceStream) else stream.lengths.name


def _notes(stream: Stream, options: LoadOptions) -> list[str]:
    if isinstance(stream, BacklogStream):
        return []
    end_s = stream.trace.duration_s - options.warm_up_s
    if end_s < 0.0:
        raise ConfigError(
            f"stream {stream.info.name}: all {len(stream.trace)} requests of its trace come within "
            f"the warm-up of {options.warm_up_s:g} s: give a shorter --warm-up-s"
        )
    # A trace that is made for the run has its last arrival a little before the end.
    if end_s < 0.9 * options.duration_s:
        return [f"stream {stream.info.name}: its trace ends at {end_s:.1f} s of the run"]
    return []
