"""Speed of our paged decode attention on CPUs: against memory, torch's SDPA and vLLM's CPU op.

A round reads a large buffer, runs our kernel, reads again, then runs the competitors; only one of
them works at a time and all take turns, so that what the machine does meanwhile meets them all.
Ratios are taken within a round; the table has their medians and the middle half of the rounds.
Every cache is larger than the processor's, its blocks lie in random order. torch gets contiguous
keys and values; ratios to competitors are of time for the same tokens. vLLM has no int8 cache on
CPUs: there it gets an fp8 one, and queries in bfloat16.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from cpu_attention_case import ELEMENT_BYTES, AttentionCase, huge_memory, token_bytes
from cpu_attention_ours import OurAttention, PagedCache
from cpu_attention_report import CaseResult, Form, document, forms_table
from cpu_attention_ring import describe_ring, measure_ring
from cpu_attention_torch import BestSdpa, best_sdpa, shape_key
from engine_worker import Worker, WorkerDied
from machine import OtherLoad, machine, openmp_environment, say
from read_probe import TeamReader

from cpu_attn import isa
from cpu_attn.kernel_variant import Products
from cpu_attn.thread_team import ThreadTeam

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=f"{isa.VARIABLE} takes a lower path: one of {', '.join(isa.NAMES)}.",
    )
    num_cores = len(os.sched_getaffinity(0))
    kinds = list(ELEMENT_BYTES)
    parser.add_argument("--kv", nargs="+", default=kinds, choices=kinds, help="element types")
    parser.add_argument("--block-size", type=int, nargs="+", default=[16, 32, 64, 128], metavar="N")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, num_cores}), metavar="N"
    )
    parser.add_argument("--kv-heads", type=int, default=8, metavar="N")
    parser.add_argument("--group", type=int, nargs="+", default=[4], help="heads of a KV head")
    parser.add_argument("--head-dim", type=int, nargs="+", default=[128], metavar="N")
    parser.add_argument(
        "--products", nargs="+", default=["exact", "bfloat16"], choices=["exact", "bfloat16"]
    )
    parser.add_argument("--context", type=int, default=4096, help="tokens of each sequence")
    parser.add_argument("--kv-mib", type=int, default=256, help="at least this much to read a step")
    parser.add_argument("--memory", default="anonymous", choices=["anonymous", "memfd"])
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="cpu: processor time where one thread works, for a machine that has other work",
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    parser.add_argument("--settle-s", type=float, default=0.02, help="pause after each competitor")
    parser.add_argument("--peer-python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--no-peer", action="store_true", help="without vLLM")
    parser.add_argument("--no-sdpa", action="store_true", help="without torch's SDPA")
    parser.add_argument("--no-ring", action="store_true", help="without the host process")
    parser.add_argument("--only-ring", action="store_true", help="the host process alone")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out/bench", help="for cpu_attention.md and .json"
    )
    options = parser.parse_args()
    if options.quick:
        options.block_size = [size for size in options.block_size if size in (16, 64)]
        options.rounds = min(options.rounds, 7)
    return options


def cases_of(options: argparse.Namespace) -> Iterator[AttentionCase]:
    """Cases that differ in their block size alone follow each other: torch needs no new data."""
    for kv in options.kv:
        for head_dim in options.head_dim:
            for group_size in options.group:
                for num_threads in options.threads:
                    for block_size in options.block_size:
                        sequence_bytes = options.context * token_bytes(
                            kv, options.kv_heads, head_dim
                        )
                        yield AttentionCase(
                            kv=kv,
                            block_size=block_size,
                            num_threads=num_threads,
                            num_kv_heads=options.kv_heads,
                            group_size=group_size,
                            head_dim=head_dim,
                            num_sequences=-(-(options.kv_mib << 20) // sequence_bytes),
                            context_len=options.context,
                        )


class Bench:
    """Holds what outlives a case: the buffer to read, torch's best form, vLLM's process."""

    def __init__(self, options: argparse.Namespace, peer: Worker | None) -> None:
        self._options, self._peer = options, peer
        self._in_memfd = options.memory == "memfd"
        self._buffer = huge_memory(max(256, options.kv_mib) << 20, in_memfd=self._in_memfd)
        self._buffer[:] = 1
        self._sdpa: tuple[object, BestSdpa] | None = None

    def run(self, case: AttentionCase) -> Iterator[CaseResult]:
        """A result for each kind of products that the case can be computed with."""
        torch.set_num_threads(case.num_threads)
        sdpa = None if self._options.no_sdpa else self._best_sdpa(case)
        vllm = self._prepare_peer(case)
        cache = PagedCache(case, in_memfd=self._in_memfd)
        for products in self._options.products:
            if products == "bfloat16" and case.kv != "bfloat16":
                continue
            with ThreadTeam(case.num_threads) as team:
                ours = OurAttention(case, cache, Products[products.upper()], team)
                ours.run()
                result = CaseResult(case, products, ours.error())
                if sdpa is not None:
                    result.sdpa_form = Form(sdpa.form.name, sdpa.error, sdpa.tried)
                result.vllm_form = vllm
                self._measure(result, ours, TeamReader(self._buffer, team), sdpa)
            yield result

    def _best_sdpa(self, case: AttentionCase) -> BestSdpa:
        key = shape_key(case)
        if self._sdpa is None or self._sdpa[0] != key:
            self._sdpa = None
            self._sdpa = key, best_sdpa(case, lambda work: self._seconds(case, work))
        return self._sdpa[1]

    def _prepare_peer(self, case: AttentionCase) -> Form | None:
        if self._peer is None:
            return None
        answer = self._peer.ask(
            {"kind": "prepare", "case": case.as_json(), "clock": self._clock_of(case)}
        )
        for form, seconds in answer["tried"].items():
            if isinstance(seconds, str):
                say(f"vLLM {form}: {seconds}")
        if "form" not in answer:
            return None
        tried = {k: v for k, v in answer["tried"].items() if not isinstance(v, str)}
        return Form(answer["form"], answer["error"], tried)

    def _measure(
        self, result: CaseResult, ours: OurAttention, reader: TeamReader, sdpa: BestSdpa | None
    ) -> None:
        case = result.case
        load = OtherLoad([self._peer.cpu_seconds] if self._peer else [])
        for _ in range(self._options.rounds):
            before = reader.num_bytes / self._seconds(case, reader.run)
            result.ours.append(self._seconds(case, ours.run))
            after = reader.num_bytes / self._seconds(case, reader.run)
            result.reads.append((before + after) / 2)
            if sdpa is not None:
                result.sdpa.append(self._seconds(case, sdpa.form.run))
                time.sleep(self._options.settle_s)
            if result.vllm_form is not None and self._peer is not None:
                result.vllm.append(self._peer.ask({"kind": "run"})["seconds"])
                time.sleep(self._options.settle_s)
        result.other_cores = load.read()

    def _clock_of(self, case: AttentionCase) -> str:
        return "cpu" if self._options.clock == "cpu" and case.num_threads == 1 else "wall"

    def _seconds(self, case: AttentionCase, work: Callable[[], object]) -> float:
        now = time.thread_time if self._clock_of(case) == "cpu" else time.perf_counter
        start = now()
        work()
        return now() - start


def start_peer(options: argparse.Namespace) -> Worker | None:
    if options.no_peer:
        return None
    if not options.peer_python.exists():
        say(f"no vLLM at {options.peer_python} (make peer-vllm installs it): without it")
        return None
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Its threads sleep a millisecond after its work, not 200 into the others' turns.
        "KMP_BLOCKTIME": "1",
    }
    environment |= openmp_environment(options.peer_python)
    command = [str(options.peer_python), str(HERE / "cpu_attention_vllm.py")]
    return Worker(command, environment, {"kind": "describe"}, options.out / "vllm-attention.log")


def facts_of(options: argparse.Namespace, peer: Worker | None) -> dict[str, str]:
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "path": isa.active().name,
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numba", "torch")),
        "settings": f"context {options.context}, {options.kv_heads} KV heads, at least "
        f"{options.kv_mib} MiB of KV a step in {options.memory} memory, blocks in random order, "
        f"{options.rounds} rounds, {options.clock} clock",
    }
    if peer is not None:
        facts["vLLM"] = f"{peer.info['version']}, torch {peer.info['torch']}"
    return facts


def run_cases(options: argparse.Namespace, peer: Worker | None) -> list[CaseResult]:
    results: list[CaseResult] = []
    bench = Bench(options, peer)
    cases = list(cases_of(options))
    for index, case in enumerate(cases):
        say(
            f"{index + 1} of {len(cases)}: {case.kv}, block {case.block_size}, "
            f"{case.num_threads} threads, group {case.group_size}, head dim {case.head_dim}"
        )
        results += bench.run(case)
    return results


def run_all(
    options: argparse.Namespace, peer: Worker | None
) -> tuple[list[CaseResult], dict[str, str]]:
    """Cases, and further sections by title."""
    results: list[CaseResult] = []
    sections = {}
    if not options.only_ring:
        with torch.inference_mode():
            results = run_cases(options, peer)
        sections["Forms of the competitors"] = forms_table(results)
    if not options.no_ring:
        say("host process")
        ring = measure_ring(quick=options.quick).table()
        sections["Host attention process"] = f"{describe_ring()}\n\n{ring}"
    return results, sections


def main() -> int:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    peer = None
    try:
        peer = None if options.only_ring else start_peer(options)
        facts = facts_of(options, peer)
        results, sections = run_all(options, peer)
    except WorkerDied as error:
        say(f"error: {error}")
        return 1
    finally:
        if peer is not None:
            peer.close()
    text = document(facts, results, sections)
    print(text)
    (options.out / "cpu_attention.md").write_text(text)
    content = {"facts": facts, "cases": [result.as_json() for result in results]}
    (options.out / "cpu_attention.json").write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
