"""Best-effort throughput against latency-sensitive TPOT, with and without attention piggybacking.

Contenders are engines in processes of their own, which work in turn: LS alone, best-effort work on
the device only, piggybacking, and overflow to a second engine on the host's cores. Best-effort
contexts are put into place, not computed (piggyback_placed.py); what a prompt costs is measured
apart and counted where the tables say so. Bounds come from measurements of the same run.
"""

import argparse
import json
import platform
import sys
import time
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from engine import checkpoint
from engine_worker import WorkerDied
from machine import machine, say
from piggyback_cases import Cell, Frame, Piggybacking
from piggyback_contenders import (
    DEVICE_ONLY,
    LS_ALONE,
    PIGGYBACKING,
    SECOND_ENGINE,
    Arena,
    ModelFiles,
    Processes,
)
from piggyback_document import RunResult, document
from piggyback_lanes import measure_binding, measure_frontier, measure_overhead, measure_scaling
from piggyback_options import (
    ACCELERATOR_LS_LIMIT,
    CPU_LS_LIMIT,
    GOALS,
    cells_of,
    load_of,
    parse_arguments,
    split_frame,
    vocab_size_of,
    whole_frame,
)
from piggyback_plot import draw
from piggyback_report import FrameResult
from piggyback_slow_host import measure_slow_host
from piggyback_sweep import Plan, measure_base, measure_prefill, sweep

from omniserve.synthetic.info import ModelReport, model_report


class Benchmark:
    """One run: starts the processes of a frame, measures, ends them."""

    def __init__(self, options: argparse.Namespace, model: ModelFiles, report: ModelReport) -> None:
        self._options, self._model, self._report = options, model, report
        self._load = load_of(options)
        self.result = RunResult(self._load)

    def run(self) -> None:
        """Raises WorkerDied."""
        if set(self._options.parts) - {"whole"}:
            self._measure_split()
        if "whole" in self._options.parts:
            self._measure_whole()

    def _measure_split(self) -> None:
        options, frame = self._options, split_frame(self._options)
        second = [SECOND_ENGINE] if frame.overflow_cores else []
        with closing(Processes(self._model, self._load, options.out)) as processes:
            arena = self._arena(frame, processes, [LS_ALONE, DEVICE_ONLY, PIGGYBACKING, *second])
            probes = processes.start("piggyback_probes.py", "probes", frame.cores, _split(frame))
            result = FrameResult(
                frame,
                self._load,
                CPU_LS_LIMIT if frame.device == "cpu" else ACCELERATOR_LS_LIMIT,
                measure_prefill(arena, options.context),
                measure_base(
                    arena,
                    probes,
                    options.context,
                    self._report.num_layers,
                    self._report.kv_bytes_per_token,
                ),
            )
            self.result.split = result
            if "emulated" in options.parts:
                result.cells = sweep(
                    arena, self._plan(cells_of(options.context, options.kv, options.longer_kv))
                )
            self._measure_lanes(arena)

    def _measure_whole(self) -> None:
        options, frame = self._options, whole_frame(self._options)
        cells = cells_of(options.context[:1], options.whole_kv, ())
        with closing(Processes(self._model, self._load, options.out)) as processes:
            arena = self._arena(frame, processes, [LS_ALONE, DEVICE_ONLY, PIGGYBACKING])
            prefill = measure_prefill(arena, options.context)
            result = FrameResult(frame, self._load, CPU_LS_LIMIT, prefill)
            result.cells = sweep(arena, self._plan(cells, goals={}))
            self.result.whole = result

    def _arena(self, frame: Frame, processes: Processes, contenders: list[str]) -> Arena:
        options = self._options
        say(f"{frame.name}: {', '.join(contenders)} start")
        piggybacking = Piggybacking(
            host_kv_bytes=int(options.host_kv_gib * 2**30),
            host_attention_threads=frame.host_threads,
            max_offloaded_requests=self._load.be_requests,
            max_resident_decodes=None,
            max_lane_rows_beside_ls=options.lane_rows,
        )
        arena = Arena(frame, self._load, processes, piggybacking)
        arena.start(contenders)
        arena.open_ls_alone(max(options.context))
        return arena

    def _plan(self, cells: tuple[Cell, ...], goals: dict[int, float] | None = None) -> Plan:
        options = self._options
        return Plan(
            cells,
            tuple(options.duty),
            options.rounds,
            options.periods,
            GOALS if goals is None else goals,
            options.goal_rounds,
        )

    def _measure_lanes(self, arena: Arena) -> None:
        options, result = self._options, self.result
        rounds, periods = options.rounds, options.periods
        if "frontier" in options.parts:
            for cell in (Cell(context, 1) for context in options.context[:1]):
                cases = measure_frontier(arena, cell, options.frontier_rows, rounds, periods)
                result.frontier += cases
                result.frontier_kv += [cell.kv_name] * len(cases)
        if "scaling" in options.parts:
            for context in options.context[:1]:
                counts = self._offloaded_counts(context)
                result.scaling += measure_scaling(arena, context, counts, rounds, periods)
        if "overhead" in options.parts:
            result.overhead = measure_overhead(arena, options.overhead_rows, rounds, periods)
        if "slow-host" in options.parts:
            result.slow_host = measure_slow_host(arena, options.context[0], rounds, periods)
        if "binding" in options.parts:
            result.binding = measure_binding(
                arena, options.context[0], options.binding, rounds, periods
            )

    def _offloaded_counts(self, context: int) -> list[int]:
        """Those asked for; where the host's pool holds fewer, as many as it holds."""
        request_bytes = self._load.be_total(context) * self._report.kv_bytes_per_token
        # A request more is being prefilled, or its blocks are on their way.
        most = int(self._options.host_kv_gib * 2**30) // request_bytes - 1
        return sorted({min(count, most) for count in self._options.offloaded})


def _split(frame: Frame) -> dict[str, Any]:
    """What the probes' process is told of its cores."""
    return {
        "device": frame.device,
        "device_threads": frame.device_threads,
        "device_cores": frame.device_cores,
        "host_cores": frame.cores[-frame.host_threads :],
    }


def facts_of(options: argparse.Namespace, seconds: float) -> dict[str, str]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "python": platform.python_version(),
        "model": f"{options.arch} {options.preset} {options.dtype}",
        "settings": f"host pool {options.host_kv_gib:g} GiB, {options.lane_rows} lane rows beside "
        f"LS, {options.rounds} rounds ({options.goal_rounds} more where goals are set), windows of "
        f"{options.periods} periods after one that does not count",
        "took": f"{seconds:.0f} s",
    }


def write_report(options: argparse.Namespace, result: RunResult, seconds: float) -> None:
    facts = facts_of(options, seconds)
    content = {"facts": facts, "result": asdict(result)}
    (options.out / "piggyback.json").write_text(json.dumps(content, default=str, indent=1) + "\n")
    text = document(facts, result, GOALS)
    frames = [frame for frame in (result.split, result.whole) if frame is not None]
    plot = options.out / "piggyback.svg"
    if any(frame.cells for frame in frames) and draw(frames, result.frontier, plot):
        text += f"\nFrontier: `{plot}`\n"
    print(text)
    (options.out / "piggyback.md").write_text(text)


def main() -> int:
    options = parse_arguments((__doc__ or "").split("\n", 1)[0])
    options.out.mkdir(parents=True, exist_ok=True)
    start_s = time.perf_counter()
    path = checkpoint(options, vocab_size_of(options))
    report = model_report(path)
    benchmark = Benchmark(
        options, ModelFiles(path, options.dtype, report.kv_bytes_per_token), report
    )
    try:
        benchmark.run()
    except WorkerDied as error:
        say(f"error: {error}")
        return 1
    write_report(options, benchmark.result, time.perf_counter() - start_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
