"""The clients of a simulated run: what they send, and what they see of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import (
    BacklogStream,
    Stream,
    TraceStream,
    arrivals,
    backlog,
    sent_lengths,
)
from omniserve.bench.run_record import Outcome, RequestRecord, StreamInfo
from omniserve.bench.trace.trace import TraceRequest
from omniserve.profiling.profile import Profile
from omniserve.requests import TierRules, TierSettings
from omniserve.simulate.prompts import prompt_tokens
from scheduler import Objectives, Request, ServiceClass


@dataclass(slots=True)
class Sent:
    """A request that is with an engine, or on its way there."""

    stream: Stream
    record: RequestRecord


class Clients:
    """Sends the streams of a run and records every token. Times of records begin at 0, the start of
    the measured part; those of the simulation begin with the warm-up."""

    def __init__(
        self,
        streams: Sequence[Stream],
        options: LoadOptions,
        profiles: Mapping[str, Profile],
        max_model_len: Mapping[str, int],
        tiers: Mapping[str, TierSettings],
    ) -> None:
        """`profiles` and `max_model_len` are by model; `tiers` are by name."""
        self.records: list[RequestRecord] = []
        self.with_engine: dict[str, Sent] = {}
        self._streams = streams
        self._start_s = options.warm_up_s
        self._duration_s = options.duration_s
        self._fronts = {name: profile.front for name, profile in profiles.items()}
        self._max_model_len = max_model_len
        self._tiers = tiers
        self._backlogs = [
            (stream, backlog(stream)) for stream in streams if isinstance(stream, BacklogStream)
        ]
        self._next_of = {id(stream): turn for stream, turn in self._backlogs}
        self._num_sent = {stream.info.name: 0 for stream in streams}

    def open_loops(self) -> list[Iterator[tuple[float, TraceStream, TraceRequest]]]:
        """What each trace sends, with the simulation's time at which it does."""
        return [
            self._open_loop(stream) for stream in self._streams if isinstance(stream, TraceStream)
        ]

    def _open_loop(self, stream: TraceStream) -> Iterator[tuple[float, TraceStream, TraceRequest]]:
        for at_s, request in arrivals(stream, self._duration_s, self._start_s):
            yield at_s + self._start_s, stream, request

    def first_of_backlogs(self) -> Iterator[tuple[BacklogStream, TraceRequest]]:
        for stream, turn in self._backlogs:
            for _ in range(stream.concurrency):
                yield stream, next(turn)

    def next_of_backlog(self, stream: BacklogStream) -> TraceRequest:
        return next(self._next_of[id(stream)])

    def send(
        self, stream: Stream, wanted: TraceRequest, now_s: float
    ) -> tuple[str, Request, TierRules]:
        """A request that leaves the client now; it reaches the engine `way_in_s` later."""
        info = stream.info
        lengths = sent_lengths(wanted, self._max_model_len[info.model])
        index = self._num_sent[info.name]
        self._num_sent[info.name] += 1
        record = RequestRecord(
            stream=info.name,
            index=index,
            scheduled_s=now_s - self._start_s,
            prompt_tokens=lengths.prompt_tokens,
            max_tokens=lengths.max_tokens,
            sent_s=now_s - self._start_s,
        )
        number = len(self.records)
        self.records.append(record)
        name = wanted.tier or info.tier
        tier = self._tiers.get(name) or _tier_of_stream(name, info)
        request = Request(
            request_id=f"{info.name}-{index}",
            service_class=ServiceClass(tier.service_class),
            tier=tier.name,
            arrival_s=now_s,
            token_ids=prompt_tokens(lengths.prompt_tokens, wanted.prefix_hashes, number),
            max_tokens=lengths.max_tokens,
            objectives=tier.objectives,
            tenant=wanted.tenant,
            demote_after_tokens=tier.rules.demote_after_tokens,
            fallback_tier=tier.rules.fallback,
        )
        self.with_engine[request.request_id] = Sent(stream, record)
        return info.model, request, tier.rules

    def way_in_s(self, model: str) -> float:
        """From the client to the engine."""
        front = self._fronts[model]
        return front.way_in_s

    def way_out_s(self, model: str) -> float:
        """From the engine to the client."""
        return self._fronts[model].way_out_s

    def note_tokens(self, model: str, request_ids: Sequence[str], now_s: float) -> None:
        """One token more for each of those that are still wanted."""
        at_s = now_s + self.way_out_s(model) - self._start_s
        with_engine = self.with_engine
        for request_id in request_ids:
            sent = with_engine.get(request_id)
            if sent is not None:
                sent.record.token_times_s.append(at_s)

    def note_end(
        self, request_id: str, now_s: float, outcome: Outcome = "done", error: str = ""
    ) -> Sent | None:
        """The request ended; None if it was not wanted any more."""
        sent = self.with_engine.pop(request_id, None)
        if sent is not None:
            model = sent.stream.info.model
            sent.record.ended_s = now_s + self.way_out_s(model) - self._start_s
            sent.record.outcome = outcome
            sent.record.error = error
        return sent

    def give_up_backlogs(self) -> list[str]:
        """Backlog requests that have not ended; their records go on saying `cut_off`."""
        given_up = [
            request_id
            for request_id, sent in self.with_engine.items()
            if isinstance(sent.stream, BacklogStream)
        ]
        for request_id in given_up:
            del self.with_engine[request_id]
        return given_up


def _tier_of_stream(name: str, info: StreamInfo) -> TierSettings:
    """Where no configuration says what its tier is."""
    objectives = None
    is_urgent = info.service_class == "latency_sensitive"
    if is_urgent and info.ttft_ms is not None and info.tpot_ms is not None:
        objectives = Objectives(info.ttft_ms / 1e3, info.tpot_ms / 1e3)
    return TierSettings(name, info.service_class, objectives)
