"""The measurements of benchmarks/engine.py: which worker does what when, and what is noted."""

import time
from collections.abc import Sequence
from typing import Any

from engine_cases import Procedure
from engine_report import CaseResult
from engine_worker import Meter, Worker
from machine import say

# More prompt tokens than this are worth a word on how long they take.
_MANY_PROMPT_TOKENS = 50_000


def measure_all(
    procedure: Procedure, workers: Sequence[Worker], results: Sequence[CaseResult]
) -> None:
    """Fills in `results`; the first worker is OmniServe's."""
    for result in results:
        if result.case.kind == "decode":
            _measure_decode(procedure, workers, result)
    prefill = [result for result in results if result.case.kind == "prefill"]
    for worker in workers:
        for result in prefill:
            worker.ask(_prefill(result, "warm-up"))
    for index in range(procedure.rounds if prefill else 0):
        say(f"prefill: round {index + 1} of {procedure.rounds}")
        for result in prefill:
            command = _prefill(result, f"round {index}")
            _measure_in_turn(procedure, workers, result, index, command)


def _prefill(result: CaseResult, seed: str) -> dict[str, Any]:
    return {"kind": "prefill", "prompts": result.case.prompts(result.vocab_size, seed)}


def _measure_decode(procedure: Procedure, workers: Sequence[Worker], result: CaseResult) -> None:
    for worker in workers:
        _begin_decode(procedure, worker, result)
    say(f"{result.case}: {procedure.rounds} rounds of {procedure.window_steps} steps")
    window = {"kind": "window", "num_steps": procedure.window_steps}
    for index in range(procedure.rounds):
        _measure_in_turn(procedure, workers, result, index, window)
    for worker in workers:
        worker.ask({"kind": "end"})


def _begin_decode(procedure: Procedure, worker: Worker, result: CaseResult) -> None:
    case, name = result.case, worker.info["name"]
    num_tokens = case.batch * case.length
    notice = ", which takes minutes" if num_tokens > _MANY_PROMPT_TOKENS else ""
    say(f"{case}: {name} prefills {num_tokens:,} tokens{notice}")
    answer = worker.ask(
        {
            "kind": "begin",
            "prompts": case.prompts(result.vocab_size, "decode"),
            "max_tokens": procedure.max_new_tokens(case),
            "num_steps": procedure.window_steps,
        }
    )
    if notice:
        say(f"{case}: {name} took {answer['seconds']:.0f} s to prefill")


def _measure_in_turn(
    procedure: Procedure,
    workers: Sequence[Worker],
    result: CaseResult,
    index: int,
    command: dict[str, Any],
) -> None:
    """One measurement of every worker, noted in `result`."""
    # Who goes first alternates: it finds the machine as the other left it.
    for worker in workers if index % 2 == 0 else workers[::-1]:
        time.sleep(procedure.settle_s)
        meter = Meter(worker, [other for other in workers if other is not worker])
        answer = worker.ask(command)
        result.note_cores(meter.read())
        result.note_answer(answer, is_ours=worker is workers[0])
