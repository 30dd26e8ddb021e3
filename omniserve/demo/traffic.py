"""Sends the planned traffic for the length of the window and records what comes back."""

import asyncio
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from omniserve.demo.clients import DaemonClients, OnTokens, RequestFailed, RequestRefused, Served
from omniserve.demo.load import CHAT_TOKENS, ChatTurn, Document, chat_arrivals, documents
from omniserve.demo.measure import RequestTrace, Tier
from omniserve.demo.options import DemoOptions
from omniserve.v1 import omniserve_pb2 as pb

MIN_DRAIN_S = 10.0
STATUS_INTERVAL_MS = 500
RETRY_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class StatusSample:
    """The daemon's own word on one moment."""

    at_s: float
    kv_used_bytes: int
    kv_total_bytes: int
    num_preemptions: int


@dataclass(slots=True)
class Record:
    """All that a run has seen so far; `started_s` is the clock's reading at the start."""

    window_s: float
    started_s: float = field(default_factory=time.monotonic)
    traces: list[RequestTrace] = field(default_factory=list)
    samples: list[StatusSample] = field(default_factory=list)

    def now_s(self) -> float:
        return time.monotonic() - self.started_s


class Traffic:
    """One run: open-loop interactive arrivals beside a closed-loop backlog."""

    def __init__(self, clients: DaemonClients, served: Served, options: DemoOptions) -> None:
        self._clients = clients
        self._served = served
        self._num_workers = options.be_concurrency
        self._turns = chat_arrivals(options.ls_rate, options.duration_s, options.seed)
        self._backlog = documents(options.seed)
        self._requests: dict[asyncio.Task[None], RequestTrace] = {}
        self.record = Record(options.duration_s)

    async def run(self) -> None:
        """Sends for the window, then lets what runs end, within bounds. Leaves nothing running."""
        senders = [asyncio.create_task(self._send_chats(), name="demo-chats")]
        senders += [
            asyncio.create_task(self._work_off(), name=f"demo-batch-{number}")
            for number in range(self._num_workers)
        ]
        watch = asyncio.create_task(self._watch_status(), name="demo-status")
        try:
            # A sender that fails does so here: each of them ends once the window is over.
            await asyncio.wait(senders, timeout=self._left_s(), return_when="FIRST_EXCEPTION")
            for sender in senders:
                if sender.done():
                    sender.result()
            await asyncio.sleep(self._left_s())
            await self._drain()
        finally:
            await _cancel([watch, *senders])
            await _cancel(self._requests)

    def _left_s(self) -> float:
        return max(0.0, self.record.window_s - self.record.now_s())

    async def _drain(self) -> None:
        """Best-effort work that has not begun is given up; everything else may end."""
        for task, trace in self._requests.items():
            if trace.is_waiting and trace.tier == self._served.batch.name:
                task.cancel()
        if self._requests:
            await asyncio.wait(self._requests, timeout=drain_s(self._served.interactive))

    async def _send_chats(self) -> None:
        for turn in self._turns:
            await asyncio.sleep(turn.at_s - self.record.now_s())
            trace = self._new_trace(self._served.interactive)
            self._start(trace, self._chat(turn, trace))

    async def _work_off(self) -> None:
        while self.record.now_s() < self.record.window_s:
            trace = self._new_trace(self._served.batch)
            await asyncio.wait([self._start(trace, self._complete(next(self._backlog), trace))])
            if trace.outcome in ("failed", "refused"):
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _chat(self, turn: ChatTurn, trace: RequestTrace) -> None:
        await self._clients.chat(self._served, turn, self._noter(trace))

    async def _complete(self, document: Document, trace: RequestTrace) -> None:
        num_tokens = await self._clients.complete(self._served, document, self._noter(trace))
        trace.correct_total(num_tokens)

    def _noter(self, trace: RequestTrace) -> OnTokens:
        return lambda num_tokens: trace.add(self.record.now_s(), num_tokens)

    def _new_trace(self, tier: Tier) -> RequestTrace:
        trace = RequestTrace(tier.name, self.record.now_s())
        self.record.traces.append(trace)
        return trace

    def _start(self, trace: RequestTrace, request: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(request, name="demo-request")
        self._requests[task] = trace
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        trace = self._requests.pop(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            trace.end(self.record.now_s(), "cut_off")
        elif error is None:
            trace.end(self.record.now_s(), "done")
        elif isinstance(error, RequestRefused):
            trace.end(self.record.now_s(), "refused", str(error))
        else:
            # Whatever it is: a fault of the demo itself must not vanish in a task either.
            kind = "" if isinstance(error, RequestFailed) else f"{type(error).__name__}: "
            trace.end(self.record.now_s(), "failed", f"{kind}{error}")

    async def _watch_status(self) -> None:
        async for status in self._clients.watch_status(STATUS_INTERVAL_MS):
            model = next(each for each in status.models if each.name == self._served.model)
            self.record.samples.append(_sample(self.record.now_s(), model))


def drain_s(tier: Tier) -> float:
    """Long enough that an interactive request that is cut off has missed its objectives."""
    if tier.ttft_ms is None or tier.tpot_ms is None:
        return MIN_DRAIN_S
    return max(MIN_DRAIN_S, (tier.ttft_ms + tier.tpot_ms * CHAT_TOKENS[1]) / 1000)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _sample(at_s: float, model: pb.ModelStatus) -> StatusSample:
    return StatusSample(at_s, model.kv_used_bytes, model.kv_total_bytes, model.num_preemptions)
