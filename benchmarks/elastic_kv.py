"""How fast KV memory moves between two models of one engine, and what it costs those that compute.

Two models with random weights share a KV budget in this process. The tide goes back and forth: one
model has more best-effort work than the budget holds; then latency-sensitive requests for the other
one arrive, at layer boundaries of the first one's steps as on a daemon, and need a share of the
budget that the first one's requests hold. They end, and the first one takes the memory back.

Measured is the time from a request's arrival until its model has the memory; that from the end of
these requests until the first model has again what it had; the time that steps wait while memory is
moved; and, in turn with that, what the kernel needs to give the same bytes back and to touch them
anew with nothing else around: no way to move memory is faster.

Then models come and go (`elastic_loads.py`): what that leaves in memory, and costs the steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import machine, say

from omniserve.devices.elastic_memory import HostPages
from omniserve.engine.core import Engine
from omniserve.engine.kv_arbiter import KvArbiter
from omniserve.requests import EngineRequest, SamplingParams, ServiceClassName
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.synthetic.create import write_checkpoint

BUSY, PRESSING = "busy", "pressing"
MIB = 1 << 20
WANTED_S = 0.1
_PIECE_BYTES = 1 << 20
_GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of a run."""

    preset: str
    budget_bytes: int
    share: float
    """Of the budget, that comes and goes."""
    num_tides: int
    prompt_tokens: int
    step_tokens: int
    """Most rows of a step: it is the busy model's step that an arrival waits for."""


@dataclass(frozen=True, slots=True)
class Tide:
    """One arrival of latency-sensitive requests."""

    moved_bytes: int
    latency_s: float
    """From the arrival until their model had the memory."""
    moving_s: float
    """Of that, in which memory was given back and granted, and nothing computed."""
    longest_wait_s: float
    """Of a step, for one such time."""
    limit_s: float
    """That giving the same bytes back takes alone."""
    touch_s: float
    """That touching them anew takes, which comes on top on the way to the first token."""
    back_s: float
    """From the end of those requests until the busy model has again what it had."""


class Watch:
    """Times whenever memory may move, and sees when a model has what it waits for."""

    def __init__(self) -> None:
        self.calls_s: list[float] = []
        self.had_at_s: float | None = None
        self._wanted: tuple[str, int] | None = None
        for name in ("balance", "hasten"):
            setattr(KvArbiter, name, self._timed(getattr(KvArbiter, name)))

    def _timed(self, move: Callable[..., None]) -> Callable[..., None]:
        def timed(arbiter: KvArbiter, *args: object) -> None:
            start_s = time.perf_counter()
            move(arbiter, *args)
            end_s = time.perf_counter()
            self.calls_s.append(end_s - start_s)
            if self._wanted is not None and num_waits(arbiter, self._wanted[0]) > self._wanted[1]:
                self.had_at_s, self._wanted = end_s, None

        return timed

    def await_memory(self, arbiter: KvArbiter, model: str) -> None:
        """`had_at_s` will be when the model next has all that it is to have."""
        self.calls_s.clear()
        self.had_at_s, self._wanted = None, (model, num_waits(arbiter, model))


def num_waits(arbiter: KvArbiter, model: str) -> int:
    stats = arbiter.stats(model)
    return 0 if stats is None else sum(stats.wait_counts)


def received_bytes(arbiter: KvArbiter, model: str) -> int:
    stats = arbiter.stats(model)
    return 0 if stats is None else stats.in_bytes


class Tides:
    """An engine, and the load that goes back and forth on it."""

    def __init__(self, options: Options, directory: Path, watch: Watch) -> None:
        self._options = options
        self._watch = watch
        self._num_added = 0
        self._arrival: list[EngineRequest] = []
        self._due_s = 0.0
        self.arrived_s = 0.0
        models = tuple(
            ModelSettings(
                name,
                str(
                    write_checkpoint(
                        directory / name, arch="qwen3", preset=options.preset, seed=seed
                    )
                ),
                device_kv_bytes=options.budget_bytes,
                device_kv_floor_bytes=options.budget_bytes // 8,
                max_model_len=2 * options.prompt_tokens,
                max_running_requests=1024,
                max_step_tokens=options.step_tokens,
                prefix_caching=False,
            )
            for seed, name in enumerate((BUSY, PRESSING))
        )
        settings = EngineSettings(DeviceSettings("cpu", None, options.budget_bytes), models)
        self.engine = Engine(settings, poll_arrivals=self._poll)
        self.engine.warm_up()

    def fill(self) -> None:
        """Best-effort requests of the busy model hold nearly everything."""
        engine, deadline_s = self.engine, time.perf_counter() + 10 * _GIVE_UP_S
        while True:
            (stats,) = (each for each in engine.stats() if each.name == BUSY)
            if stats.kv_used_bytes > 0.9 * self._options.budget_bytes:
                return
            if sum(stats.waiting.values()) < 4:
                engine.add(self._request(BUSY, "best_effort", self._options.prompt_tokens))
            engine.step()
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"the busy model holds {stats.kv_used_bytes} bytes, no more")

    def press(self) -> tuple[int, float]:
        """Requests of the other model arrive amid a step; bytes that move, and the latency."""
        engine, options = self.engine, self._options
        bytes_each = options.prompt_tokens * engine.runtime(PRESSING).info.kv_bytes_per_token
        count = max(1, int(options.share * options.budget_bytes / bytes_each))
        arbiter = engine.kv_sharing.device
        before = received_bytes(arbiter, PRESSING)
        self._arrival = [self._request(PRESSING, "latency_sensitive", 2) for _ in range(count)]
        self._due_s = time.perf_counter() + 0.02
        self._watch.await_memory(arbiter, PRESSING)
        deadline_s = time.perf_counter() + _GIVE_UP_S
        while self._watch.had_at_s is None:
            engine.step()
            self._poll()
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"{PRESSING} still lacks memory: {arbiter.stats(PRESSING)}")
        moved_bytes = received_bytes(arbiter, PRESSING) - before
        return moved_bytes, self._watch.had_at_s - self.arrived_s

    def ebb(self) -> None:
        """Until the pressing model has ended its work."""
        while self.engine.runtime(PRESSING).has_unfinished:
            self.engine.step()

    def flow_back(self, wanted_bytes: int) -> float:
        """Until the busy model has so much again, in seconds."""
        start_s = time.perf_counter()
        while self.granted_bytes(BUSY) < wanted_bytes:
            self.engine.step()
            if time.perf_counter() > start_s + _GIVE_UP_S:
                raise TimeoutError(f"{BUSY} has {self.granted_bytes(BUSY)} of {wanted_bytes} bytes")
        return time.perf_counter() - start_s

    def granted_bytes(self, model: str) -> int:
        (stats,) = (each for each in self.engine.stats() if each.name == model)
        return stats.kv_granted_bytes

    def _poll(self) -> None:
        if self._arrival and time.perf_counter() >= self._due_s:
            self.arrived_s = time.perf_counter()
            for request in self._arrival:
                self.engine.add(request)
            self._arrival = []

    def _request(
        self, model: str, service_class: ServiceClassName, max_tokens: int
    ) -> EngineRequest:
        self._num_added += 1
        prompt = tuple([5 + self._num_added % 90] * self._options.prompt_tokens)
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        return EngineRequest(f"r{self._num_added}", model, prompt, sampling, service_class, "t")


class Limit:
    """The same bytes, given back and touched with nothing else around."""

    def __init__(self, num_bytes: int) -> None:
        self._pages = HostPages(num_bytes)
        self._bytes = self._pages.tensor((num_bytes,), torch.uint8).numpy()
        self._bytes[:] = 1

    def measure(self, num_bytes: int) -> tuple[float, float]:
        """Seconds of giving back in pieces as the arbiter does, and of touching."""
        num_bytes = num_bytes // _PIECE_BYTES * _PIECE_BYTES
        start_s = time.perf_counter()
        for start in range(0, num_bytes, _PIECE_BYTES):
            self._pages.give_back(start, start + _PIECE_BYTES)
        given_s = time.perf_counter()
        self._bytes[:num_bytes:4096] = 1
        return given_s - start_s, time.perf_counter() - given_s


def run(options: Options) -> list[Tide]:
    watch = Watch()
    limit = Limit(options.budget_bytes)
    tides = []
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        load = Tides(options, Path(directory), watch)
        for number in range(options.num_tides + 1):
            load.fill()
            had_bytes = load.granted_bytes(BUSY)
            moved_bytes, latency_s = load.press()
            calls_s = list(watch.calls_s)
            load.ebb()
            back_s = load.flow_back(had_bytes)
            limit_s, touch_s = limit.measure(moved_bytes)
            # What is made on first use is nobody's latency.
            if number:
                moving_s = sum(calls_s)
                times_s = moving_s, max(calls_s), limit_s, touch_s, back_s
                tides.append(Tide(moved_bytes, latency_s, *times_s))
            there, back = f"{latency_s * 1e3:.1f} ms", f"{back_s * 1e3:.1f} ms"
            say(f"tide {number}: {moved_bytes / MIB:.0f} MiB after {there}, and back after {back}")
        load.engine.close()
    return tides


def report(tides: Sequence[Tide]) -> dict[str, float | str]:
    """Times in milliseconds; ratios are of what the kernel alone needs to what was needed."""

    def quantile(values: Sequence[float], q: float) -> float:
        return round(float(np.quantile(values, q)), 3)

    latencies_ms = [tide.latency_s * 1e3 for tide in tides]
    backs_ms = [tide.back_s * 1e3 for tide in tides]
    waits_ms = [tide.longest_wait_s * 1e3 for tide in tides]
    return {
        "machine": machine(),
        "tides": len(tides),
        "moved_mib": quantile([tide.moved_bytes / MIB for tide in tides], 0.5),
        "latency_p50_ms": quantile(latencies_ms, 0.5),
        "latency_p99_ms": quantile(latencies_ms, 0.99),
        "within_100_ms": sum(tide.latency_s <= WANTED_S for tide in tides) / len(tides),
        "back_p50_ms": quantile(backs_ms, 0.5),
        "back_p99_ms": quantile(backs_ms, 0.99),
        "back_within_100_ms": sum(tide.back_s <= WANTED_S for tide in tides) / len(tides),
        "step_waits_p50_ms": quantile(waits_ms, 0.5),
        "step_waits_p99_ms": quantile(waits_ms, 0.99),
        "moving_p50_ms": quantile([tide.moving_s * 1e3 for tide in tides], 0.5),
        "kernel_gives_back_p50_ms": quantile([tide.limit_s * 1e3 for tide in tides], 0.5),
        "kernel_touches_p50_ms": quantile([tide.touch_s * 1e3 for tide in tides], 0.5),
        "moving_to_limit": quantile([tide.limit_s / tide.moving_s for tide in tides], 0.5),
        "latency_to_limit": quantile([tide.limit_s / tide.latency_s for tide in tides], 0.5),
    }


def loads(num_loads: int, preset: str) -> dict[str, float | str]:
    """As `elastic_loads.py` says, in a process of its own whose kernels have still to be compiled:
    what tides have left behind is none of its memory."""
    script = Path(__file__).with_name("elastic_loads.py")
    command = [sys.executable, str(script), "--loads", str(num_loads), "--preset", preset, "--json"]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    numbers: dict[str, float | str] = json.loads(done.stdout)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small", help="size of both models (default small)")
    parser.add_argument("--budget-mib", type=int, default=64, help="of both (default 64)")
    parser.add_argument("--share", type=float, default=0.5, help="of it that moves (default 0.5)")
    parser.add_argument("--tides", type=int, default=30, help="times (default 30)")
    parser.add_argument("--loads", type=int, default=50, help="and unloads (default 50)")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="a request (default 512)")
    parser.add_argument("--step-tokens", type=int, default=64, help="a step (default 64)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    options = Options(
        given.preset,
        given.budget_mib * MIB,
        given.share,
        given.tides,
        given.prompt_tokens,
        given.step_tokens,
    )
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    numbers = report(run(options)) if given.tides else {}
    if given.loads:
        numbers |= loads(given.loads, given.preset)
    if given.json:
        print(json.dumps(numbers, indent=2))
        return
    for name, value in numbers.items():
        print(f"{name:34} {value}")


if __name__ == "__main__":
    main()
