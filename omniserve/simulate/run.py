"""A simulated run: clients, engines, and the agenda that brings them together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random
from types import MappingProxyType

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.run_record import Outcome, RunRecord, StatusSample
from omniserve.bench.trace.trace import TraceRequest
from omniserve.errors import ConfigError, Overloaded
from omniserve.profiling.profile import Profile
from omniserve.requests import TierRules, TierSettings
from omniserve.settings import EngineSettings
from omniserve.simulate.agenda import Agenda
from omniserve.simulate.client import Clients, Sent
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.build import max_model_lens
from omniserve.simulate.engine.status import sample_status
from omniserve.simulate.fleet import Fleet
from omniserve.simulate.shared_layers import NONE_SHARED, LayerKeys
from scheduler import Request

_MAX_SAMPLES = 2000
_EVENTS_PER_PROGRESS = 5_000
_RETRY_S = 1.0
"""After a backlog's request was refused."""

OnProgress = Callable[[float], None]
"""Told now and then how much of the run is done, 0 to 1."""


def simulate(
    streams: Sequence[Stream],
    settings: EngineSettings,
    profiles: Mapping[str, Profile],
    options: LoadOptions,
    num_engines: int = 1,
    tiers: Mapping[str, TierSettings] = MappingProxyType({}),
    on_progress: OnProgress | None = None,
    layer_keys: LayerKeys = NONE_SHARED,
) -> RunRecord:
    """The record that a run of these streams would leave; equal arguments give equal records.

    `profiles` are by model name. Each request goes to the engine with the fewest unfinished ones.
    Requests have the class, objectives and rules of their tier among `tiers`, which are by name;
    where it is not there, the class and objectives of their stream. Models share the layers of
    which `layer_keys` says so.

    Raises:
        ConfigError: a model has no profile or too little KV, or a stream asks for a model that is
            not there.
    """
    _check_streams(streams, settings)
    simulation = Simulation(streams, settings, profiles, options, num_engines, tiers, layer_keys)
    simulation.run(on_progress)
    return simulation.record()


def _check_streams(streams: Sequence[Stream], settings: EngineSettings) -> None:
    names = [model.name for model in settings.models]
    for stream in streams:
        if stream.info.model not in names:
            raise ConfigError(
                f"stream {stream.info.name}: model {stream.info.model!r} is not configured; "
                f"allowed: {', '.join(names)}"
            )


class Simulation:
    """One run from its warm-up to the end of its drain."""

    def __init__(
        self,
        streams: Sequence[Stream],
        settings: EngineSettings,
        profiles: Mapping[str, Profile],
        options: LoadOptions,
        num_engines: int = 1,
        tiers: Mapping[str, TierSettings] = MappingProxyType({}),
        layer_keys: LayerKeys = NONE_SHARED,
    ) -> None:
        """Raises ConfigError where a model has no profile or too little KV."""
        self._streams = streams
        self._profiles = profiles
        self._options = options
        self._clock = Clock()
        self._agenda = Agenda(self._clock)
        self._clients = Clients(
            streams, options, profiles, max_model_lens(settings, profiles), tiers
        )
        self.fleet = Fleet(
            num_engines,
            settings,
            profiles,
            self._clock,
            self._agenda,
            Random(options.seed),
            self._note_tokens,
            self._note_refused,
            layer_keys,
        )
        self._end_s = options.warm_up_s + options.duration_s
        self._is_closing = False
        self._samples: list[StatusSample] = []

    def run(self, on_progress: OnProgress | None = None) -> None:
        """Until all requests of traces have ended, or the time for that is over."""
        for arrivals in self._clients.open_loops():
            self._expect(arrivals)
        for stream, wanted in self._clients.first_of_backlogs():
            self._send(stream, wanted)
        self._agenda.at(0.0, self._sample)
        self._agenda.at(self._end_s, self._close)
        last_s = self._end_s + self._options.drain_s
        num_events = 0
        while not (self._is_closing and not self._clients.with_engine):
            next_s = self._agenda.next_s
            if next_s is None or next_s > last_s:
                break
            self._agenda.do_next()
            num_events += 1
            if on_progress is not None and num_events % _EVENTS_PER_PROGRESS == 0:
                on_progress(min(1.0, next_s / self._end_s))
        if on_progress is not None:
            on_progress(1.0)

    def record(self) -> RunRecord:
        """What was seen so far."""
        devices = ", ".join(dict.fromkeys(profile.device for profile in self._profiles.values()))
        num_engines = len(self.fleet.engines)
        engines = "an engine" if num_engines == 1 else f"{num_engines} engines"
        layers = {
            model.num_layers
            for engine in self.fleet.engines
            for model in engine.models.values()
            if model.lanes is not None
        }
        return RunRecord(
            title=self._options.title,
            target=f"OmniServe, simulated: {engines} on {devices}",
            streams=[stream.info for stream in self._streams],
            duration_s=self._options.duration_s,
            requests=self._clients.records,
            samples=self._samples,
            num_layers=layers.pop() if len(layers) == 1 else None,
            facts={"simulated": True, "seed": self._options.seed, "engines": num_engines},
        )

    def _expect(self, arrivals: Iterator[tuple[float, TraceStream, TraceRequest]]) -> None:
        """Enters the next request of a trace; one at a time keeps the agenda short."""
        arrival = next(arrivals, None)
        if arrival is not None:
            at_s, stream, wanted = arrival
            self._agenda.at(at_s, partial(self._arrive, stream, wanted, arrivals))

    def _arrive(
        self,
        stream: TraceStream,
        wanted: TraceRequest,
        arrivals: Iterator[tuple[float, TraceStream, TraceRequest]],
    ) -> None:
        self._send(stream, wanted)
        self._expect(arrivals)

    def _send(self, stream: Stream, wanted: TraceRequest) -> None:
        model, request, rules = self._clients.send(stream, wanted, self._clock.now_s)
        way_s = self._clients.way_in_s(model)
        self._agenda.at(self._clock.now_s + way_s, partial(self._submit, model, request, rules))

    def _submit(self, model: str, request: Request, rules: TierRules) -> None:
        # A backlog may have been given up while its request was on its way.
        if request.request_id in self._clients.with_engine:
            self.fleet.submit(model, request, rules)

    def _note_tokens(self, model: str, sampled: Sequence[str], finished: Sequence[Request]) -> None:
        self._clients.note_tokens(model, sampled, self._clock.now_s)
        for request in finished:
            sent = self._clients.note_end(request.request_id, self._clock.now_s)
            self._go_on(sent, self._clients.way_out_s(model))

    def _note_refused(self, model: str, request: Request, error: Exception) -> None:
        outcome: Outcome = "rejected" if isinstance(error, Overloaded) else "failed"
        sent = self._clients.note_end(request.request_id, self._clock.now_s, outcome, str(error))
        self._go_on(sent, _RETRY_S)

    def _go_on(self, sent: Sent | None, pause_s: float) -> None:
        """A backlog's next request follows the one that ended."""
        if sent is not None and isinstance(sent.stream, BacklogStream):
            self._agenda.at(self._clock.now_s + pause_s, partial(self._send_next, sent.stream))

    def _send_next(self, stream: BacklogStream) -> None:
        if not self._is_closing:
            self._send(stream, self._clients.next_of_backlog(stream))

    def _sample(self) -> None:
        at_s = self._clock.now_s
        self._samples.append(sample_status(self.fleet.engines, at_s - self._options.warm_up_s))
        pause_s = max(self._options.status_interval_ms / 1e3, self._end_s / _MAX_SAMPLES)
        self._agenda.at(at_s + pause_s, self._sample)

    def _close(self) -> None:
        """The measured part is over: backlogs end, requests of traces may."""
        self._is_closing = True
        for request_id in self._clients.give_up_backlogs():
            self.fleet.abort(request_id)
