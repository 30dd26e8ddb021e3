"""One run: streams sent to servers, and everything that came back."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.prepare import PreparedRun, prepare_run
from omniserve.bench.load.progress import Progress
from omniserve.bench.load.quiet_collector import quiet_collector
from omniserve.bench.load.server_clock import server_clocks
from omniserve.bench.load.streams import Stream
from omniserve.bench.load.target import Clock, RequestFailed, StatusReading, Target, TargetInfo
from omniserve.bench.run_record import RunRecord, StatusSample

LEAD_S = 0.05
"""From the end of all preparations to the first request."""
OnProgress = Callable[[Progress], None]


async def run_load(
    targets: Target | Mapping[str, Target],
    streams: Sequence[Stream],
    options: LoadOptions,
    on_progress: OnProgress | None = None,
) -> RunRecord:
    """Sends `streams` to one target, or each to the target of its name, and returns what was seen.

    A stream without a model gets the server's first. Leaves nothing running, however it ends.
    Raises RequestFailed where a server does not answer before the run; what fails during the run
    is in the record.
    """
    run = LoadRun(targets, streams, options, on_progress)
    await run.run()
    return run.record()


class LoadRun:
    """A run whose record can be had at any time, also after it was cancelled."""

    def __init__(
        self,
        targets: Target | Mapping[str, Target],
        streams: Sequence[Stream],
        options: LoadOptions,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._targets = targets
        self._streams = streams
        self._options = options
        self._on_progress = on_progress
        self._began_s = 0.0
        """Of the measured part, by the monotonic clock."""
        self._measured_s: float | None = None
        self._prepared: PreparedRun | None = None
        self._samples: list[StatusSample] = []
        self._clocks_before: list[Clock] = []
        self._clocks: list[tuple[Clock, Clock]] = []
        self._cpu_s = 0.0
        self._generator_cores = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether there is something to record."""
        return self._prepared is not None

    async def run(self) -> None:
        """Raises as run_load does; a cancelled run may still be asked for its record."""
        prepared = await prepare_run(self._targets, self._streams, self._options, self._now_s)
        if not self._options.warm_up_s:
            # At the begin of the measured part its first requests may have ended before the answer.
            self._clocks_before = await _read_clocks(prepared)
        with quiet_collector():
            self._began_s = time.monotonic() + LEAD_S + self._options.warm_up_s
            self._prepared = prepared
            watchers = [
                asyncio.create_task(watch, name="load-watch") for watch in self._watches(prepared)
            ]
            try:
                await self._measure(prepared)
            finally:
                self._note_end()
                for load in prepared.loads:
                    await load.stop()
                for watcher in watchers:
                    watcher.cancel()
                await asyncio.gather(*watchers, return_exceptions=True)
        for watcher in watchers:
            # A display that broke must not go unnoticed.
            if not watcher.cancelled() and (error := watcher.exception()):
                raise error

    def record(self) -> RunRecord:
        """What was seen so far, once the run has begun; of a run that was cut short the part until
        then counts."""
        prepared = self._prepared
        assert prepared is not None
        clocks = [
            clock
            for side, (before, after) in zip(prepared.sides, self._clocks, strict=False)
            for clock in server_clocks(side.info, side.streams, before, after)
        ]
        measured_s = self._now_s() if self._measured_s is None else self._measured_s
        requests = [record for load in prepared.loads for record in load.runner.records]
        return RunRecord(
            title=self._options.title,
            target="; ".join(side.info.text for side in prepared.sides),
            streams=list(prepared.streams),
            duration_s=max(0.0, min(self._options.duration_s, measured_s)),
            requests=sorted(requests, key=lambda record: (record.scheduled_s, record.stream)),
            samples=self._samples,
            server_clock=clocks,
            generator_cores=self._generator_cores,
            num_layers=_num_layers(prepared.sides[0].info),
            facts=prepared.facts(self._options),
        )

    async def _measure(self, prepared: PreparedRun) -> None:
        await self._sleep_until(-self._options.warm_up_s)
        for load in prepared.loads:
            load.start()
        await self._sleep_until(0.0)
        self._cpu_s = time.process_time()
        before = self._clocks_before or await _read_clocks(prepared)
        await self._sleep_until(self._options.duration_s)
        self._note_end()
        drain_s = self._options.drain_s
        await asyncio.gather(*(load.drain(drain_s) for load in prepared.loads))
        self._clocks = list(zip(before, await _read_clocks(prepared), strict=True))

    def _note_end(self) -> None:
        """The measured part is over, in time or before."""
        if self._measured_s is None:
            self._measured_s = self._now_s()
            if self._measured_s > 0:
                self._generator_cores = (time.process_time() - self._cpu_s) / self._measured_s

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self._now_s()))

    def _watches(self, prepared: PreparedRun) -> list[Coroutine[Any, Any, None]]:
        watches = [self._watch_status(prepared)]
        if self._on_progress is not None:
            watches.append(self._show_progress(prepared, self._on_progress))
        return watches

    async def _show_progress(self, prepared: PreparedRun, on_progress: OnProgress) -> None:
        interval_s = self._options.progress_interval_s
        while True:
            await asyncio.sleep(interval_s)
            streams = tuple(load.runner.progress(interval_s) for load in prepared.loads)
            on_progress(Progress(self._now_s(), streams))

    async def _watch_status(self, prepared: PreparedRun) -> None:
        """Of the first server that tells one: readings of several would not be of one moment."""
        for side in prepared.sides:
            async for reading in side.target.watch_status(self._options.status_interval_ms):
                self._samples.append(_sample(self._now_s(), reading))


def _num_layers(info: TargetInfo) -> int | None:
    """Where all models have as many: the status sums their lane rows up."""
    counts = {model.num_layers for model in info.models}
    return counts.pop() if len(counts) == 1 else None


async def _read_clocks(prepared: PreparedRun) -> list[Clock]:
    """Of every server; a reading that fails is empty, as the run is worth more than it."""
    read = await asyncio.gather(
        *(side.target.clock() for side in prepared.sides), return_exceptions=True
    )
    for reading in read:
        if isinstance(reading, BaseException) and not isinstance(reading, RequestFailed):
            raise reading
    return [{} if isinstance(reading, BaseException) else reading for reading in read]


def _sample(at_s: float, reading: StatusReading) -> StatusSample:
    return StatusSample(
        at_s=round(at_s, 6),
        kv_used_bytes=reading.kv_used_bytes,
        kv_total_bytes=reading.kv_total_bytes,
        num_running=reading.num_running,
        num_waiting=reading.num_waiting,
        num_offloaded=reading.num_offloaded,
        num_steps=reading.num_steps,
        num_preemptions=reading.num_preemptions,
        num_rows_joined=reading.num_rows_joined,
        num_piggybacked_tokens=reading.num_piggybacked_tokens,
    )
