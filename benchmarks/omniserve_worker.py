"""OmniServe's engine as benchmarks/engine.py measures it: in this process, by the shared driver."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import engine_driver

from omniserve import __version__
from omniserve.engine.core import Engine
from omniserve.requests import EngineRequest, SamplingParams
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings

MODEL = "bench"


class OmniserveEngine:
    def __init__(self, settings: dict[str, Any]) -> None:
        model = ModelSettings(
            name=MODEL,
            path=settings["model"],
            dtype=settings["dtype"],
            device_kv_bytes=settings["kv_bytes"],
            max_model_len=settings["max_model_len"],
            max_running_requests=settings["max_num_seqs"],
            max_step_tokens=settings["max_step_tokens"],
            prefix_caching=False,
        )
        device = DeviceSettings(kind="cpu", threads=settings["threads"])
        self._engine = Engine(EngineSettings(device, (model,)))

    def describe(self) -> dict[str, str]:
        return {
            "name": "OmniServe",
            "version": __version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self._engine.add(
            EngineRequest(
                request_id=request_id,
                model=MODEL,
                prompt_token_ids=tuple(prompt),
                sampling=sampling,
                service_class="latency_sensitive",
                tier="bench",
            )
        )

    def step(self) -> dict[str, int]:
        outputs = self._engine.step()
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
        return {output.request_id: len(output.token_ids) for output in outputs}

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._engine.abort(request_id)

    def has_unfinished(self) -> bool:
        return self._engine.has_unfinished

    def take_timings(self) -> dict[str, float]:
        timings = self._engine.runtime(MODEL).timings
        seconds = timings.seconds
        timings.reset()
        return seconds


if __name__ == "__main__":
    engine_driver.serve(OmniserveEngine)
