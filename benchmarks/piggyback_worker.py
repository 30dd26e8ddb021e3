"""A process of benchmarks/piggyback.py that holds one engine at a time."""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import piggyback_placed
import torch
from piggyback_cases import BLOCK_TOKENS, MAX_STEP_TOKENS, Load
from piggyback_process import serve
from piggyback_stopping import slowed_host
from piggyback_traffic import MODEL, Seen, Traffic

from omniserve.engine.core import Engine
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings, PiggybackSettings


class EngineWorker:
    """Obeys commands; between `open` and `close` it has an engine."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._load = Load(**settings["load"])
        self._cores = os.sched_getaffinity(0)
        self._engine: Engine | None = None
        self._traffic: Traffic | None = None

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        kind = command.pop("kind")
        handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self._open,
            "fill": self._fill,
            "window": self._window,
            "prefill": self._prefill,
            "end": self._end,
        }
        return handlers[kind](**command)

    def _open(self, context: int, room: dict[str, Any]) -> dict[str, Any]:
        # The last engine may have left this thread without the cores of its host.
        os.sched_setaffinity(0, self._cores)
        self._engine = Engine(self._engine_settings(**room))
        piggyback_placed.fill_with_noise(self._engine, MODEL)
        self._engine.warm_up()
        self._traffic = Traffic(self._engine, self._load, context)
        # What lives as long as the engine need not be looked at before every window.
        gc.collect()
        gc.freeze()
        return {"device": self._engine.device}

    def _engine_settings(
        self,
        device_kv_tokens: int,
        max_model_len: int,
        max_running_requests: int,
        prompt_room_tokens: int,
        piggybacking: dict[str, Any] | None,
    ) -> EngineSettings:
        settings = self._settings
        piggyback = None if piggybacking is None else PiggybackSettings(**piggybacking)
        model = ModelSettings(
            name=MODEL,
            path=settings["model"],
            dtype=settings["dtype"],
            device_kv_bytes=device_kv_tokens * settings["kv_bytes_per_token"],
            max_model_len=max_model_len,
            block_size=BLOCK_TOKENS,
            max_running_requests=max_running_requests,
            max_step_tokens=MAX_STEP_TOKENS,
            piggyback=piggyback,
        )
        device = DeviceSettings(kind=settings["device"], threads=settings["device_threads"])
        return EngineSettings(device, (model,))

    def _fill(self, num_best_effort: int, settle_s: float) -> dict[str, Any]:
        _, traffic = self._opened()
        traffic.fill(num_best_effort)
        traffic.run(settle_s, duty=0.0, period_s=1.0)
        return {}

    def _window(
        self, duty: float, period_s: float, num_periods: int, host_share: float
    ) -> dict[str, Any]:
        """Measures `num_periods` after one that does not count."""
        with slowed_host(host_share):
            return self._measure(duty, period_s, num_periods)

    def _measure(self, duty: float, period_s: float, num_periods: int) -> dict[str, Any]:
        engine, traffic = self._opened()
        gc.collect()
        traffic.run(period_s, duty, period_s)
        traffic.seen = Seen()
        runtime = engine.runtime(MODEL)
        runtime.timings.reset()
        before = self._counters()
        start_s = time.perf_counter()
        traffic.run(num_periods * period_s, duty, period_s)
        seconds = time.perf_counter() - start_s
        answer = {
            "seconds": seconds,
            "num_steps": runtime.timings.num_steps,
            "ls_gaps_s": traffic.seen.ls_gaps_s,
            "be_tokens": traffic.seen.be_tokens,
            "timings": dict(runtime.timings.seconds),
            "before": before,
            "after": self._counters(),
        }
        traffic.quieten()
        return answer

    def _counters(self) -> dict[str, Any]:
        """Of the engine, as they are now; `piggyback` is None where it does not piggyback."""
        engine, _ = self._opened()
        (stats,) = engine.stats()
        piggyback = None if stats.piggyback is None else asdict(stats.piggyback)
        return {"num_preemptions": stats.num_preemptions, "piggyback": piggyback}

    def _prefill(self, context: int, beside_ls: bool) -> dict[str, Any]:
        """Seconds of a prompt that is computed."""
        _, traffic = self._opened()
        traffic.seen = Seen()
        traffic.has_latency_sensitive = beside_ls
        for _ in range(self._load.ls_requests + 2):
            traffic.step()
        seconds = traffic.prefill(context)
        traffic.quieten()
        return {"seconds": seconds, "ls_gaps_s": traffic.seen.ls_gaps_s}

    def _opened(self) -> tuple[Engine, Traffic]:
        assert self._engine is not None and self._traffic is not None
        return self._engine, self._traffic

    def _end(self) -> dict[str, Any]:
        self.close()
        return {}

    def close(self) -> None:
        """Ends the engine, where there is one."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._traffic = None
        gc.unfreeze()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    piggyback_placed.install()
    serve(EngineWorker)
