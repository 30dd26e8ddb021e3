"""What models that come and go leave behind in an engine's memory, and what it costs its steps.

One model decodes for a latency-sensitive request without a pause. Beside it another one, of another
architecture and element type, is loaded, answers a request and is unloaded, again and again. The
first of these loads imports and compiles what that kind of model needs: run with an empty
NUMBA_CACHE_DIR, as `elastic_kv.py` does, to have all of it compiled.

Measured is the process's resident memory after each unload, and the time from one of the decode's
tokens to the next: how much longer than usual the longest was, in layers of its own steps.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from machine import say

from omniserve.engine.core import Engine
from omniserve.engine.model_news import Loaded, Unloaded
from omniserve.requests import EngineRequest, SamplingParams, ServiceClassName
from omniserve.settings import DeviceSettings, DtypeName, EngineSettings, ModelSettings
from omniserve.synthetic.create import write_checkpoint

STAYS, COMES = "stays", "comes"
MIB = 1 << 20
_KINDS: tuple[tuple[str, str, DtypeName], ...] = (
    (STAYS, "qwen3", "bfloat16"),
    (COMES, "llama", "float32"),
)
_NUM_IDLE_TOKENS = 20
"""Before each load: what the steps take then is what is usual."""
_GIVE_UP_S = 300.0


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Gaps:
    """Seconds from each token of the decode that goes on to its next, by what went on beside it."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    phase: str = "idle"
    _last_s: float | None = None

    def note(self) -> None:
        """A token came."""
        now_s = time.perf_counter()
        if self._last_s is not None:
            self.seconds.setdefault(self.phase, []).append(now_s - self._last_s)
        self._last_s = now_s


class Comings:
    """An engine, its decode, and the model that comes and goes."""

    def __init__(self, preset: str, directory: Path) -> None:
        stays, self._comes = (
            ModelSettings(
                name,
                str(write_checkpoint(directory / name, arch=arch, preset=preset, seed=seed)),
                dtype=dtype,
                device_kv_bytes=32 * MIB,
                device_kv_floor_bytes=8 * MIB,
                max_model_len=1024,
                prefix_caching=False,
            )
            for seed, (name, arch, dtype) in enumerate(_KINDS)
        )
        device = DeviceSettings("cpu", None, 32 * MIB)
        self.engine = Engine(EngineSettings(device, (stays,)), poll_arrivals=lambda: None)
        self.engine.warm_up()
        self.gaps = Gaps()
        self._num_added = 0
        self._decode = ""

    @property
    def num_layers(self) -> int:
        return self.engine.runtime(STAYS).num_layers

    def decode(self, num_tokens: int) -> None:
        """With nothing beside it."""
        before = len(self.gaps.seconds.get("idle", ()))
        while len(self.gaps.seconds.get("idle", ())) < before + num_tokens:
            self._step()

    def load(self, phase: str) -> float:
        """Seconds that it took."""
        start_s = time.perf_counter()
        self.gaps.phase = phase
        self.engine.begin_load(1, self._comes)
        self._until(Loaded)
        took_s = time.perf_counter() - start_s
        self.gaps.phase = "answering"
        answer = self._ask(COMES, "best_effort", 8)
        while answer not in self._step():
            pass
        return took_s

    def unload(self) -> None:
        self.gaps.phase = "unloading"
        self.engine.begin_unload(2, COMES)
        self._until(Unloaded)
        self.gaps.phase = "idle"

    def _until(self, kind: type[Loaded] | type[Unloaded]) -> None:
        deadline_s = time.perf_counter() + _GIVE_UP_S
        while True:
            self._step()
            for news in self.engine.take_news():
                if isinstance(news, kind):
                    return
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"no {kind.__name__} came")

    def _step(self) -> set[str]:
        """The requests that ended."""
        if not self._decode:
            self._decode = self._ask(STAYS, "latency_sensitive", 900)
        ended = set()
        for output in self.engine.step():
            assert output.error is None, output.error
            if output.request_id == self._decode:
                self.gaps.note()
            if output.finish_reason is not None:
                ended.add(output.request_id)
        if self._decode in ended:
            self._decode = ""
        return ended

    def _ask(self, model: str, service_class: ServiceClassName, max_tokens: int) -> str:
        self._num_added += 1
        request_id = f"r{self._num_added}"
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        prompt = (5, 6, 7, 8)
        self.engine.add(EngineRequest(request_id, model, prompt, sampling, service_class, "t"))
        return request_id


def run(num_loads: int, preset: str) -> dict[str, float | str]:
    """Ratios are what was at the start, or without loads, over what came of it."""
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        comings = Comings(preset, Path(directory))
        comings.decode(_NUM_IDLE_TOKENS)
        before_bytes = resident_bytes()
        seconds, sizes = [], []
        for number in range(num_loads):
            comings.decode(_NUM_IDLE_TOKENS)
            seconds.append(comings.load("loading" if number else "first load"))
            comings.unload()
            sizes.append(resident_bytes())
            if number % 10 == 0 or number == num_loads - 1:
                say(f"load {number}: {seconds[-1]:.2f} s, {sizes[-1] / MIB:.1f} MiB resident")
        comings.engine.close()
    gaps = {phase: np.array(each) for phase, each in comings.gaps.seconds.items()}
    usual_s = float(np.median(gaps["idle"]))
    layer_s = usual_s / comings.num_layers

    def longest_layers(phase: str) -> float:
        """By which the longest gap was longer than usual."""
        return round((float(gaps[phase].max()) - usual_s) / layer_s, 1) if phase in gaps else 0.0

    loading = gaps.get("loading", gaps["first load"])
    return {
        "loads": num_loads,
        "load_p50_s": round(float(np.median(seconds)), 3),
        "first_load_s": round(seconds[0], 3),
        "rss_before_loads_mib": round(before_bytes / MIB, 1),
        "rss_by_tens_mib": " ".join(f"{each / MIB:.1f}" for each in [*sizes[::10], sizes[-1]]),
        "rss_start_to_end": round(sizes[0] / sizes[-1], 4),
        "ls_gap_idle_p50_ms": round(usual_s * 1e3, 3),
        "ls_gap_idle_longest_layers": longest_layers("idle"),
        "ls_gap_loading_p50_ms": round(float(np.median(loading)) * 1e3, 3),
        "ls_gap_loading_p99_ms": round(float(np.quantile(loading, 0.99)) * 1e3, 3),
        "ls_gap_idle_to_loading_p50": round(usual_s / float(np.median(loading)), 3),
        "ls_gap_first_load_longest_layers": longest_layers("first load"),
        "ls_gap_loading_longest_layers": longest_layers("loading"),
        "ls_gap_unloading_longest_layers": longest_layers("unloading"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small", help="size of both models (default small)")
    parser.add_argument("--loads", type=int, default=50, help="and unloads (default 50)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    if given.loads < 1:
        parser.error(f"--loads: {given.loads}; at least 1")
    numbers = run(given.loads, given.preset)
    if given.json:
        print(json.dumps(numbers, indent=2))
        return
    for name, value in numbers.items():
        print(f"{name:34} {value}")


if __name__ == "__main__":
    main()
