"""The fuzzing of a real daemon's sockets."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from fuzz.campaign import Budget, Outcome
from fuzz.served_cases import (
    PATIENCE_S,
    grpc_calls,
    http_calls,
    raw_http,
    raw_http2,
    try_grpc_call,
    try_http_call,
    try_raw_http,
    try_raw_http2,
)
from fuzz.served_front import ServedFront, served_front

BATCH = 200
SERVED = ("raw-http", "http-calls", "raw-http2", "grpc-calls")


def run_served(kind: str, budget: Budget, checkpoint: Path) -> Outcome:
    """Batches of cases, each begun with another seed, against one daemon."""
    num_cases, started_s, finding, number = 0, time.monotonic(), "", 0
    try:
        with served_front(checkpoint) as front:
            while num_cases < budget.cases and time.monotonic() - started_s < budget.seconds:
                number += 1
                num_cases += run_batch(kind, front, number, min(BATCH, budget.cases - num_cases))
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        finding = f"batch {number}: {error!r}\n{notes}"
    return Outcome(kind, num_cases, time.monotonic() - started_s, finding=finding)


def run_batch(kind: str, front: ServedFront, number: int, num_cases: int) -> int:
    """Raises what a bad case raises, for the simplest such case; returns how many there were."""
    if kind == "raw-http":
        return _run(raw_http, lambda case: try_raw_http(front, case), number, num_cases)
    if kind == "raw-http2":
        return _run(raw_http2, lambda case: try_raw_http2(front, case), number, num_cases)
    if kind == "http-calls":
        with httpx.Client(base_url=front.http_url, timeout=PATIENCE_S) as client:
            return _run(http_calls, lambda case: try_http_call(client, case), number, num_cases)
    with grpc.insecure_channel(front.grpc_address) as channel:
        return _run(grpc_calls, lambda case: try_grpc_call(channel, case), number, num_cases)


def _run(
    strategy: SearchStrategy[Any], attempt: Callable[[Any], None], number: int, num_cases: int
) -> int:
    num_tried = 0

    @seed(number)
    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def try_all(case: Any) -> None:
        nonlocal num_tried
        num_tried += 1
        attempt(case)

    try_all()
    return num_tried
