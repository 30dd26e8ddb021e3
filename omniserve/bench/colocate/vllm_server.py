"""A vLLM-CPU server of a comparison."""

import os
import subprocess
from pathlib import Path

import httpx

from omniserve.bench.colocate.frames import show_cores
from omniserve.bench.colocate.pinning import pin_server
from omniserve.bench.colocate.ports import free_port
from omniserve.bench.colocate.processes import ServerProcess
from omniserve.bench.colocate.running_server import RunningServer
from omniserve.bench.colocate.server_plan import BLOCK_TOKENS, Limits, ServerPlan
from omniserve.bench.colocate.waiting import poll

READY_S = 600.0
VERSION_S = 60.0

_COMPUTING = "VLLM::Worker"
"""What vLLM calls the process that runs the model; its scheduler and API are in others."""


def vllm_version(python: Path) -> str | None:
    """Of the vLLM that this interpreter has; None without one."""
    code = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=VERSION_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


async def start_vllm(
    plan: ServerPlan, limits: Limits, directory: Path, python: Path, cache: Path
) -> RunningServer:
    """Once it is ready and pinned. Raises ServerFailed, or as `pin_server` does."""
    address = f"127.0.0.1:{free_port()}"
    process = await ServerProcess.start(
        plan.key,
        (str(python), *vllm_arguments(plan, limits, address)),
        vllm_environment(plan, python, cache),
        directory / f"{plan.key}.log",
        directory,
        plan.placement,
    )
    try:
        await poll(process, lambda: answers(address), READY_S)
        pin_server(plan.frame, process.tree(), _COMPUTING, plan.compute_cores)
    except BaseException:
        await process.stop()
        raise
    return RunningServer(plan, process, f"http://{address}", None)


def vllm_arguments(plan: ServerPlan, limits: Limits, address: str) -> list[str]:
    """Of the interpreter."""
    (model,) = plan.models
    host, port = address.split(":")
    return [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model.path), "--served-model-name", model.name),
        *("--host", host, "--port", port),
        *("--dtype", limits.dtype, "--seed", "0"),
        *("--max-model-len", str(limits.max_model_len)),
        *("--max-num-batched-tokens", str(limits.max_step_tokens)),
        *("--max-num-seqs", str(limits.max_running_requests)),
        *("--block-size", str(BLOCK_TOKENS)),
        *("--kv-cache-memory-bytes", str(model.device_kv_bytes)),
        *("--scheduling-policy", "priority", "--no-enable-prefix-caching"),
        *("--uvicorn-log-level", "warning"),
    ]


def vllm_environment(plan: ServerPlan, python: Path, cache: Path) -> dict[str, str]:
    """Ours, with what vLLM's documentation advises for a CPU."""
    environment = dict(os.environ)
    # "auto" would leave one core to the rest.
    environment["VLLM_CPU_OMP_THREADS_BIND"] = show_cores(plan.compute_cores)
    environment["VLLM_CACHE_ROOT"] = str(cache)
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    # Without an OpenMP runtime loaded first, its bound threads share a core.
    runtime = python.parent.parent / "lib" / "libiomp5.so"
    if "LD_PRELOAD" not in environment and runtime.exists():
        environment["LD_PRELOAD"] = str(runtime)
    return environment


def answers(address: str) -> bool:
    """Whether a server at host:port says that it is well."""
    try:
        # A proxy of the environment has no business with a server of this machine.
        answer = httpx.get(f"http://{address}/health", timeout=2.0, trust_env=False)
        return answer.status_code == 200
    except httpx.HTTPError:
        return False
