"""One trial of one server, and many of them side by side."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from api_client import SILENCE_S, LoadFailed, LoadGenerator, Shape, Wire
from api_processes import Server
from machine import say

from omniserve.bench.load.quiet_collector import quiet_collector

Pace = Literal["flood", "paced"]
ENDLESS_TOKENS = 1 << 19


@dataclass(frozen=True, slots=True)
class Procedure:
    """How every trial is done."""

    seconds: float
    warm_up_s: float
    settle_s: float
    step_ms: float
    """Between two tokens of a stream, where they are paced."""
    num_connections: int
    """Of gRPC; HTTP has one for each stream."""
    rounds: int


@dataclass(frozen=True, slots=True)
class Case:
    wire: Wire
    pace: Pace
    num_streams: int

    def __str__(self) -> str:
        return f"{self.wire}, {self.num_streams} streams, {self.pace}"


@dataclass(frozen=True, slots=True)
class Trial:
    """What one server did in one window."""

    server: str
    case: Case
    tokens_per_s: float
    messages_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    """Ages of tokens when the client had them."""
    server_us_per_token: float
    """Processor time of the server's process."""
    client_share: float
    """Of a core, used by the load generator: near 1 it was the limit."""


def run_trial(server: Server, case: Case, procedure: Procedure) -> Trial:
    is_flood = case.pace == "flood"
    interval_us = 0 if is_flood else round(1e3 * procedure.step_ms)
    feedback = server.feedback if is_flood else None
    shape = Shape(ENDLESS_TOKENS, interval_us)
    with (
        quiet_collector(),
        LoadGenerator(
            case.wire,
            server.addresses[case.wire],
            shape,
            case.num_streams,
            procedure.num_connections,
            feedback,
        ) as load,
    ):
        load.begin()
        load.run(procedure.warm_up_s)
        load.forget()
        cpu_s, own_s, began_s = server.cpu_s(), time.process_time(), time.perf_counter()
        load.run(procedure.seconds)
        # A machine that stood still meanwhile: what it did then counts as well.
        while not load.received.delays_us and time.perf_counter() - began_s < SILENCE_S:
            load.run(procedure.seconds)
        took_s = time.perf_counter() - began_s
        cpu_s, own_s = server.cpu_s() - cpu_s, time.process_time() - own_s
    # The server notices that its client has gone, and is idle again before the next trial.
    time.sleep(procedure.settle_s)
    delays_us = load.received.delays_us
    if not delays_us:
        raise LoadFailed(f"{server.name}: no token came; {case}")
    p50_ms, p90_ms, p99_ms = np.percentile(delays_us, (50, 90, 99)) / 1e3
    return Trial(
        server.name,
        case,
        len(delays_us) / took_s,
        load.received.num_messages / took_s,
        float(p50_ms),
        float(p90_ms),
        float(p99_ms),
        1e6 * cpu_s / len(delays_us),
        own_s / took_s,
    )


def run_all(
    cases: Sequence[Case], procedure: Procedure, ours: Server, bare: dict[Wire, Server]
) -> Iterator[Trial]:
    """Round by round, ours and the bare server in turn, so that both meet what the machine does."""
    for number in range(procedure.rounds):
        for case in cases:
            say(f"round {number + 1} of {procedure.rounds}: {case}")
            pair = (ours, bare[case.wire])
            for server in pair if number % 2 == 0 else reversed(pair):
                yield run_trial(server, case, procedure)
