"""What a change of tiers would have made of what arrived lately."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from omniserve.errors import InvalidRequest
from omniserve.installation import environment_with_packages
from omniserve.profiling.profile import Profile
from omniserve.reload.arrivals import Arrival, ArrivalRecord
from omniserve.reload.forecast_messages import Forecast, ForecastJob, PastRequest
from omniserve.settings import EngineSettings, ModelInfo
from omniserve.tier_table import TierTable
from scheduler.step_time import LinearStepTime

_COMMAND = (sys.executable, "-P", "-m", "omniserve.reload.forecast_process")
LIMIT_S = 60.0
"""Longest wait for a forecast."""
_SHARE_OF_LIMIT = 0.75
"""What the simulation gives itself: it ends with fewer arrivals rather than without a word."""
_LEAST_WINDOW_S = 1.0


class SimulatedEngine(Protocol):
    """What the forecast needs to know of the engine."""

    @property
    def settings(self) -> EngineSettings: ...
    @property
    def models(self) -> Mapping[str, ModelInfo]: ...
    @property
    def device(self) -> str: ...
    @property
    def step_times(self) -> Mapping[str, LinearStepTime]: ...


@dataclass(frozen=True, slots=True)
class NoForecast:
    """Why there is none."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forecasted:
    """A forecast, and what is to be known with it."""

    forecast: Forecast
    notes: tuple[str, ...]


class Forecaster:
    """Simulates in a process of its own, that takes only what time others leave; one at a time."""

    def __init__(
        self,
        arrivals: ArrivalRecord,
        engine: SimulatedEngine,
        clock: Callable[[], float] = time.monotonic,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._arrivals = arrivals
        self._engine = engine
        self._clock = clock
        self._limit_s = limit_s
        self._turn = asyncio.Lock()

    async def compare(self, before: TierTable, after: TierTable) -> Forecasted | NoForecast:
        """Cancelled, it leaves no process behind."""
        arrivals = self._arrivals.recent()
        if not arrivals:
            return NoForecast("no request arrived within the last hour")
        if not self._engine.models:
            return NoForecast("the engine is not ready")
        simulated = [name for name in self._engine.models if name in self._engine.step_times]
        arrivals = [each for each in arrivals if each.model in simulated]
        if not simulated:
            return NoForecast(
                "the step times of no model are known: leave the models' step_times at auto, or "
                "name a file"
            )
        if not arrivals:
            return NoForecast(
                "no request arrived within the last hour for a model whose step times are known: "
                + ", ".join(simulated)
            )
        # Thousands of requests: not while streams wait.
        payload = await asyncio.to_thread(self._payload, arrivals, before, after, simulated)
        async with self._turn:
            answer = await self._run(payload)
        if isinstance(answer, NoForecast):
            return answer
        return Forecasted(answer, self._notes(simulated))

    def _payload(
        self,
        arrivals: Sequence[Arrival],
        before: TierTable,
        after: TierTable,
        simulated: Sequence[str],
    ) -> bytes:
        first_s = arrivals[0].at_s
        settings = self._engine.settings
        models = tuple(
            replace(model, piggyback=None, step_time=self._engine.step_times[model.name])
            for model in settings.models
            if model.name in simulated
        )
        job = ForecastJob(
            settings=replace(settings, models=models),
            profiles={name: self._profile(name) for name in simulated},
            before=before.all_settings,
            after=after.all_settings,
            requests=tuple(
                PastRequest(
                    arrival.at_s - first_s,
                    arrival.model,
                    _tier_name(before, arrival),
                    _tier_name(after, arrival),
                    arrival.num_prompt_tokens,
                    arrival.num_output_tokens,
                )
                for arrival in arrivals
            ),
            duration_s=max(_LEAST_WINDOW_S, self._clock() - first_s),
            limit_s=self._limit_s * _SHARE_OF_LIMIT,
        )
        return msgspec.json.encode(job)

    def _profile(self, name: str) -> Profile:
        info, device = self._engine.models[name], self._engine.device
        return Profile(
            model=name,
            device=device,
            num_layers=info.num_layers,
            kv_bytes_per_token=info.kv_bytes_per_token,
            max_positions=info.max_model_len,
            step_time=self._engine.step_times[name],
            # A CPU computes itself; on an accelerator the next step is laid out meanwhile.
            pipeline_depth=1 if device.startswith("cpu") else 2,
        )

    def _notes(self, simulated: Sequence[str]) -> tuple[str, ...]:
        models = self._engine.settings.models
        notes = [
            f"{model.name}: simulated without piggybacking"
            for model in models
            if model.name in simulated and model.piggyback is not None
        ]
        notes += [
            f"{model.name}: not simulated, for its step times are not known"
            for model in models
            if model.name not in simulated
        ]
        return tuple(notes)

    async def _run(self, payload: bytes) -> Forecast | NoForecast:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment_with_packages(os.environ),
            # A Ctrl-C in the terminal is the daemon's to handle.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._limit_s):
                answer, problem = await process.communicate(payload)
        except TimeoutError:
            return NoForecast(f"the simulation took longer than {self._limit_s:g} s")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            words = problem.decode(errors="replace").strip().splitlines()
            return NoForecast(f"the simulation failed: {words[-1] if words else 'without a word'}")
        return msgspec.json.decode(answer, type=Forecast)


def _tier_name(tiers: TierTable, arrival: Arrival) -> str:
    """Empty where the tiers have none for it."""
    try:
        return tiers.resolve(arrival.model, arrival.asked_tier).name
    except InvalidRequest:
        return ""
