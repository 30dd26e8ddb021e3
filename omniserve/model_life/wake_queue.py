"""Requests for a model that is asleep: they wait in the front, as their tier lets them, until it is
awake."""

import asyncio
from collections import Counter
from dataclasses import replace
from math import inf
from typing import Any

from omniserve.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineUnavailable,
    ModelUnavailable,
    OmniServeError,
    Overloaded,
    UnknownModel,
)
from omniserve.model_life.wakes import ModelWakes
from omniserve.queue_movement import LEAST_WAIT_S
from omniserve.request_record import RequestRecord
from omniserve.requests import EngineRequest, TierRules
from omniserve.service import GenerationService

_LATE = "its first token would be late"
"""As the engine calls it."""


class WakeQueue:
    """Of one daemon. Keeps to the rules of tiers as the engine does for models that are awake."""

    def __init__(self, service: GenerationService, wakes: ModelWakes) -> None:
        self._service = service
        self._wakes = wakes
        self._num_waiting: Counter[tuple[str, str]] = Counter()
        self._nobody = asyncio.Event()
        self._nobody.set()

    def num_waiting(self, model: str, tier: str) -> int:
        """Sequences that wait here."""
        return self._num_waiting[model, tier]

    async def wait_none(self) -> None:
        """Returns once nobody waits here."""
        await self._nobody.wait()

    async def awake(
        self, sequences: tuple[EngineRequest, ...], record: RequestRecord
    ) -> tuple[EngineRequest, ...]:
        """Returns once the model of a request is awake, and at once where it is; with the sequences
        as they are to be sent on, by the tier's fallback where that takes them.

        Has it woken, be the request refused or given up.

        Raises:
            Overloaded: the queue of the tier is full, or the first token would come later than
                promised and no fallback takes the request.
            DeadlineExceeded: the deadline passed.
            EngineUnavailable: the model cannot be woken now (ModelUnavailable), or was unloaded, or
                the engine died.
            UnknownModel: it cannot be woken at all.
        """
        model = record.model
        if not self._wakes.is_asleep(model):
            return sequences
        pause_s = self._wakes.pause_s(model)
        if pause_s > 0.0:
            raise _no_room(model, pause_s)
        wake = self._wakes.begin(model)
        expected_s = self._wakes.expected_s(model)
        record.note("model asleep", "", f"it is expected to wake in {expected_s:.1f} s")
        self._check_room(sequences, sequences[0].rules.max_waiting, expected_s)
        sequences = self._in_time(sequences, record, expected_s)
        key = model, sequences[0].tier
        self._num_waiting[key] += len(sequences)
        self._nobody.clear()
        try:
            wake_s = await self._until_awake(wake, sequences[0], record)
        finally:
            self._num_waiting[key] -= len(sequences)
            if not any(self._num_waiting.values()):
                self._nobody.set()
        record.note("model awake", "", f"the model was asleep; woke in {wake_s:.1f} s")
        return sequences

    def _check_room(
        self, sequences: tuple[EngineRequest, ...], most: int | None, expected_s: float
    ) -> None:
        tier = sequences[0].tier
        num_waiting = self._num_waiting[sequences[0].model, tier]
        if most is None or num_waiting + len(sequences) <= most:
            return
        raise _refusal(
            f"tier {tier!r} has no room in its queue of {most} while the model wakes", expected_s
        )

    def _in_time(
        self, sequences: tuple[EngineRequest, ...], record: RequestRecord, expected_s: float
    ) -> tuple[EngineRequest, ...]:
        first = sequences[0]
        if first.objectives is None or not first.rules.admission:
            return sequences
        assert first.arrival_s is not None
        ready_s = self._service.clock() + expected_s - first.arrival_s
        promised_s = first.objectives.ttft_s
        in_time_s = inf if first.deadline_s is None else first.deadline_s - first.arrival_s
        if ready_s <= min(promised_s, in_time_s):
            return sequences
        fallback, rules = first.rules.fallback, first.rules
        if fallback is not None and ready_s <= in_time_s:
            demoted = tuple(_demoted(each, fallback) for each in sequences)
            self._check_room(demoted, rules.fallback_max_waiting, expected_s)
            detail = f"the model wakes in {expected_s:.1f} s; tier {fallback!r} takes the request"
            record.note("demoted", _LATE, detail)
            record.fallback = fallback
            return demoted
        raise _refusal(
            f"tier {first.tier!r} promises the first token within {promised_s * 1e3:.0f} ms, but "
            f"model {first.model!r} is asleep; it is being woken, which takes {expected_s:.1f} s",
            expected_s,
        )

    async def _until_awake(
        self, wake: asyncio.Task[float], sequence: EngineRequest, record: RequestRecord
    ) -> float:
        ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        assert record.lease is not None
        record.lease.on_end(lambda error: None if ended.done() else ended.set_result(error))
        left_s = None
        if sequence.deadline_s is not None:
            left_s = max(0.0, sequence.deadline_s - self._service.clock())
        ways_out: set[asyncio.Future[Any]] = {wake, ended}
        done, _ = await asyncio.wait(ways_out, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise DeadlineExceeded("the deadline passed before the model was awake")
        if ended in done:
            raise ended.result()
        return self._woken(wake, sequence.model)

    def _woken(self, wake: asyncio.Task[float], model: str) -> float:
        """Raises EngineUnavailable or UnknownModel, with nothing in their words that is for
        operators alone."""
        if wake.cancelled():
            raise EngineUnavailable("the server is shutting down; try again elsewhere or later")
        error = wake.exception()
        if isinstance(error, ConfigError):
            raise _no_room(model, self._wakes.pause_s(model))
        if isinstance(error, ModelUnavailable):
            raise ModelUnavailable(str(error), error.retry_after_s)
        if isinstance(error, EngineUnavailable):
            raise EngineUnavailable(str(error))
        if error is not None:
            raise UnknownModel(
                f"model {model!r} was asleep, and could not be woken; it is not served any more"
            )
        return wake.result()


def _no_room(model: str, pause_s: float) -> ModelUnavailable:
    hint_s = max(LEAST_WAIT_S, pause_s)
    text = (
        f"model {model!r} is asleep, and there is no room to wake it; try again in {hint_s:.1f} s"
    )
    return ModelUnavailable(text, hint_s)


def _demoted(sequence: EngineRequest, fallback: str) -> EngineRequest:
    return replace(
        sequence,
        service_class="best_effort",
        tier=fallback,
        objectives=None,
        rules=TierRules(max_waiting=sequence.rules.fallback_max_waiting),
    )


def _refusal(problem: str, expected_s: float) -> OmniServeError:
    # Not cut to what is usual: sooner it would only be refused again.
    hint_s = max(LEAST_WAIT_S, expected_s)
    return Overloaded(f"{problem}; try again in {hint_s:.1f} s", hint_s)
