"""From options to a plan: models made where they are missing, traces read, memory counted."""

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from omniserve import __version__
from omniserve.bench.colocate.control.control_plan import ControlPlan
from omniserve.bench.colocate.fleet import Launch
from omniserve.bench.colocate.omniserve_server import NO_CONTROL
from omniserve.bench.colocate.options import QUICK_LS_RATE, ColocateOptions, ControlOptions
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.scene import Memory
from omniserve.bench.colocate.server_plan import BLOCK_TOKENS, Limits
from omniserve.bench.colocate.vllm_server import vllm_version
from omniserve.bench.colocate.workload import BacklogShape, Workload
from omniserve.bench.trace.formats.read_write import read_trace
from omniserve.bench.trace.samples import SAMPLES, sample_trace
from omniserve.bench.trace.trace import Trace
from omniserve.bench.trace.transform import scale, without_failed
from omniserve.config import MEASURED
from omniserve.errors import ConfigError
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.info import ModelReport, model_report

ARCH, PRESET, DTYPE, VOCAB = "qwen3", "100m", "bfloat16", 4096
"""Of the model that is made."""
MIN_LS_OUTPUT = 2
HOST_SPARE = 1.25
"""Host KV over what the whole backlog takes."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a comparison needs."""

    plan: Plan
    workload: Workload
    memory: Memory
    launch: Launch


def prepare(options: ColocateOptions) -> Prepared:
    """Raises ConfigError, TraceError or CheckpointError."""
    version = vllm_version(options.vllm_python) if options.vllm_python else None
    if version is None and options.ls_rate is None:
        # There is nobody to search a rate by.
        options = replace(options, ls_rate=QUICK_LS_RATE)
    path = options.model.resolve() if options.model else _own_model()
    be_path = options.be_model.resolve() if options.be_model else path
    report = model_report(path)
    _check_be_model(be_path, report)
    trace = _ls_trace(options)
    backlog = BacklogShape(options.be_requests, options.be_prompt_tokens, options.be_output_tokens)
    limits = Limits(
        report.dtype,
        _max_model_len(trace, backlog, report),
        options.max_step_tokens,
        options.max_running_requests,
        options.be_tokens_beside_ls,
        _step_times(options.step_times),
    )
    plan = _plan(options, path, be_path, backlog, limits, version)
    return Prepared(
        plan,
        Workload(trace, backlog, plan.window_s, options.seed),
        _memory(options, trace, backlog, report, limits.max_model_len),
        Launch(
            limits,
            options.out / "servers",
            options.vllm_python.absolute() if options.vllm_python and version else None,
            cache_directory() / "vllm",
            report.vocab_size,
        ),
    )


def cache_directory() -> Path:
    """Where models that are made, and what vLLM compiles, are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "omniserve" / "bench"


def machine_text() -> str:
    """Processor, cores and system."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}"


def _step_times(source: str) -> str:
    """Daemons run in directories of their own."""
    if source in (MEASURED, NO_CONTROL):
        return source
    path = Path(source).resolve()
    if not path.is_file():
        raise ConfigError(f"--step-times {source}: no such file")
    return str(path)


def _own_model() -> Path:
    path = cache_directory() / f"{ARCH}-{PRESET}-{DTYPE}-{VOCAB}"
    if not (path / "config.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, arch=ARCH, preset=PRESET, dtype=DTYPE, vocab_size=VOCAB)
    return path


def _ls_trace(options: ColocateOptions) -> Trace:
    """Prompts are clipped so that, unloaded, each can meet objectives made from the median."""
    if options.trace in SAMPLES:
        trace = sample_trace(options.trace)
    else:
        trace = read_trace(Path(options.trace))
    prompts = scale(
        without_failed(trace),
        lengths=options.ls_prompt_scale,
        max_prompt_tokens=options.ls_max_prompt_tokens,
    )
    outputs = scale(without_failed(trace), lengths=options.ls_output_scale)
    kept = tuple(
        replace(prompt, output_tokens=output.output_tokens, tier="")
        for prompt, output in zip(prompts, outputs, strict=True)
        # One token alone has no time between tokens.
        if output.output_tokens >= MIN_LS_OUTPUT
    )
    if len(kept) < 2:
        raise ConfigError(f"--trace {options.trace}: fewer than 2 requests are left to send")
    return Trace(trace.name, kept)


def _check_be_model(path: Path, ls_report: ModelReport) -> None:
    """Memory and prompts are counted once for both models."""
    report = model_report(path)
    for field in ("dtype", "vocab_size", "kv_bytes_per_token", "max_positions"):
        found, needed = getattr(report, field), getattr(ls_report, field)
        if found != needed:
            raise ConfigError(f"--be-model {path}: {field} is {found}; must be --model's, {needed}")


def _max_model_len(trace: Trace, backlog: BacklogShape, report: ModelReport) -> int:
    longest = max(each.prompt_tokens + each.output_tokens for each in trace)
    needed = max(longest, backlog.longest_tokens) + 1
    blocks = -(-needed // BLOCK_TOKENS) * BLOCK_TOKENS
    if blocks > report.max_positions:
        raise ConfigError(
            f"the longest request has {needed} tokens; the model holds {report.max_positions}"
        )
    return blocks


def _memory(
    options: ColocateOptions,
    trace: Trace,
    backlog: BacklogShape,
    report: ModelReport,
    max_model_len: int,
) -> Memory:
    totals = sorted(each.prompt_tokens + each.output_tokens for each in trace)
    long_tokens = totals[int(0.9 * (len(totals) - 1))]
    return Memory(
        kv_bytes_per_token=report.kv_bytes_per_token,
        ls_tokens=options.ls_requests_in_kv * long_tokens,
        be_request_tokens=backlog.request_tokens,
        host_tokens=int(HOST_SPARE * backlog.num_requests * backlog.request_tokens),
        longest_tokens=max_model_len,
    )


def _plan(
    options: ColocateOptions,
    path: Path,
    be_path: Path,
    backlog: BacklogShape,
    limits: Limits,
    version: str | None,
) -> Plan:
    return Plan(
        ls_model=str(path),
        be_model=str(be_path),
        trace=options.trace,
        ls_prompt_scale=options.ls_prompt_scale,
        ls_output_scale=options.ls_output_scale,
        ls_max_prompt_tokens=options.ls_max_prompt_tokens,
        ls_requests_in_kv=options.ls_requests_in_kv,
        ls_rate=options.ls_rate,
        backlog=backlog,
        limits=limits,
        scenes=options.scenes,
        rounds=options.rounds,
        warm_up_s=options.warm_up_s,
        duration_s=options.duration_s,
        drain_s=options.drain_s,
        unloaded_s=options.unloaded_s,
        max_tries=options.max_tries,
        control=_control_plan(options.control) if options.control.loads else None,
        seed=options.seed,
        omniserve=__version__,
        vllm=version,
        machine=machine_text(),
    )


def _control_plan(options: ControlOptions) -> ControlPlan:
    return ControlPlan(
        scenes=options.scenes,
        loads=options.loads,
        choice=options.choice,
        capacity=options.capacity,
        ttft_factor=options.ttft_factor,
        tpot_factor=options.tpot_factor,
        rounds=options.rounds,
        warm_up_s=options.warm_up_s,
        duration_s=options.duration_s,
        drain_s=options.drain_s,
        max_tries=options.max_tries,
    )
