"""An OmniServe daemon of a comparison."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from omniserve.atomic_file import write_text
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.pinning import pin_server
from omniserve.bench.colocate.processes import ServerProcess
from omniserve.bench.colocate.running_server import RunningServer
from omniserve.bench.colocate.server_plan import (
    BE_TIER,
    BLOCK_TOKENS,
    LS_TIER,
    Limits,
    ServedModel,
    ServerPlan,
)
from omniserve.bench.colocate.waiting import poll
from omniserve.installation import environment_with_packages

FREE_PORT = "127.0.0.1:0"
READY_S = 300.0
"""The first start measures what steps take, a model at a time."""
NO_CONTROL = "none"
"""As step times: only token budgets limit steps."""

_ANY_OBJECTIVES = Objectives(ttft_ms=1000.0, tpot_ms=100.0)
_READY = re.compile(r"omniserve ready: grpc (\S+), http http://(\S+), models ")
_ENGINE_MODULE = "omniserve.engine.process"


async def start_omniserve(plan: ServerPlan, limits: Limits, directory: Path) -> RunningServer:
    """Once it is ready and pinned. Raises ServerFailed, or as `pin_server` does."""
    config_path = directory / f"{plan.key}.json"
    write_text(config_path, json.dumps(daemon_config(plan, limits), indent=2))
    process = await ServerProcess.start(
        plan.key,
        (sys.executable, "-m", "omniserve", "serve", config_path.name),
        environment_with_packages(os.environ),
        directory / f"{plan.key}.log",
        directory,
        plan.placement,
    )
    try:
        ready = await poll(process, lambda: _READY.search(process.log), READY_S)
        pin_server(plan.frame, process.tree(), _ENGINE_MODULE, plan.compute_cores)
    except BaseException:
        await process.stop()
        raise
    return RunningServer(plan, process, f"http://{ready[2]}", ready[1])


def daemon_config(plan: ServerPlan, limits: Limits) -> dict[str, Any]:
    """The configuration file."""
    return {
        "listen": {"grpc": FREE_PORT, "http": FREE_PORT},
        "device": {"kind": "cpu", "threads": len(plan.compute_cores)},
        "models": [_model(plan, model, limits) for model in plan.models],
        "tiers": [
            _ls_tier(plan),
            {"name": BE_TIER, "class": "best_effort"},
        ],
        "daemon": {"shutdown_grace_s": 1},
    }


def _ls_tier(plan: ServerPlan) -> dict[str, Any]:
    # A daemon without control does not act on them, but every tier has to have some.
    objectives = plan.objectives or _ANY_OBJECTIVES
    return {
        "name": LS_TIER,
        "class": "latency_sensitive",
        "ttft_ms": round(objectives.ttft_ms, 3),
        "tpot_ms": round(objectives.tpot_ms, 3),
        "admission": plan.admission,
    }


def _model(plan: ServerPlan, model: ServedModel, limits: Limits) -> dict[str, Any]:
    piggyback: dict[str, Any] = {"enabled": plan.piggybacking}
    if plan.piggybacking:
        piggyback["host_kv_bytes"] = model.host_kv_bytes
        piggyback["host_attention_threads"] = plan.frame.host_threads
    step_times = limits.step_times if plan.objectives else NO_CONTROL
    # Where time decides how much best-effort work a step takes on, nothing else does.
    budget = {"best_effort_tokens_beside_ls": limits.be_tokens_beside_ls}
    return {
        **(budget if step_times == NO_CONTROL else {}),
        "name": model.name,
        "path": str(model.path),
        "dtype": limits.dtype,
        "device_kv_bytes": model.device_kv_bytes,
        "max_model_len": limits.max_model_len,
        "max_step_tokens": limits.max_step_tokens,
        "max_running_requests": limits.max_running_requests,
        "block_size": BLOCK_TOKENS,
        "prefix_caching": False,
        "step_times": step_times,
        "piggyback": piggyback,
    }
