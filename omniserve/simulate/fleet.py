"""Several engines behind one router."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from random import Random

from omniserve.profiling.profile import Profile
from omniserve.requests import TierRules
from omniserve.settings import EngineSettings
from omniserve.simulate.agenda import Agenda
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.build import build_engine
from omniserve.simulate.engine.driver import Arrival, OnRefused, OnTokens
from omniserve.simulate.shared_layers import NONE_SHARED, LayerKeys
from scheduler import Request

_NO_RULES = TierRules()


class Fleet:
    """Each request goes to the engine with the fewest unfinished ones."""

    def __init__(
        self,
        num_engines: int,
        settings: EngineSettings,
        profiles: Mapping[str, Profile],
        clock: Clock,
        agenda: Agenda,
        random: Random,
        on_tokens: OnTokens,
        on_refused: OnRefused,
        layer_keys: LayerKeys = NONE_SHARED,
    ) -> None:
        """Raises ConfigError where a model has no profile or too little KV."""
        self._clock = clock
        self._agenda = agenda
        self._on_tokens = on_tokens
        self._on_refused = on_refused
        self._engine_of: dict[str, int] = {}
        self._num_unfinished = [0] * num_engines
        self._entered_s = [inf] * num_engines
        """The time for which each engine stands in the agenda."""
        self.engines = [
            build_engine(
                settings,
                profiles,
                clock,
                random,
                self._note_tokens,
                self._note_refused,
                layer_keys,
            )
            for _ in range(num_engines)
        ]
        for engine in self.engines:
            # Up to where it waits for its first request.
            engine.run()

    def submit(self, model: str, request: Request, rules: TierRules = _NO_RULES) -> None:
        """A request arrives now."""
        index = min(range(len(self.engines)), key=self._num_unfinished.__getitem__)
        self._engine_of[request.request_id] = index
        self._num_unfinished[index] += 1
        self.engines[index].submit(Arrival(model, request, rules))
        self._enter(index)

    def abort(self, request_id: str) -> None:
        """The client of a request has gone."""
        index = self._forget(request_id)
        if index is not None:
            self.engines[index].abort(request_id)
            self._enter(index)

    def check_integrity(self) -> None:
        """Raises an AssertionError where the books of some engine disagree."""
        for engine in self.engines:
            engine.check_integrity()

    def _forget(self, request_id: str) -> int | None:
        index = self._engine_of.pop(request_id, None)
        if index is not None:
            self._num_unfinished[index] -= 1
        return index

    def _enter(self, index: int) -> None:
        """Sees to it that the engine runs when it wants to."""
        wake_s = self.engines[index].wake_s
        if wake_s < self._entered_s[index]:
            self._entered_s[index] = wake_s
            self._agenda.at(wake_s, partial(self._wake, index, wake_s))

    def _wake(self, index: int, wake_s: float) -> None:
        # An engine that was woken earlier leaves an event behind that means nothing any more.
        if wake_s != self._entered_s[index]:
            return
        self._entered_s[index] = inf
        engine = self.engines[index]
        engine.run()
        # Most of what an engine does comes before anything else happens.
        while engine.wake_s < inf and self._agenda.pass_to(engine.wake_s):
            engine.run()
        self._enter(index)

    def _note_tokens(self, model: str, sampled: Sequence[str], finished: Sequence[Request]) -> None:
        for request in finished:
            self._forget(request.request_id)
        self._on_tokens(model, sampled, finished)

    def _note_refused(self, model: str, request: Request, error: Exception) -> None:
        self._forget(request.request_id)
        self._on_refused(model, request, error)
