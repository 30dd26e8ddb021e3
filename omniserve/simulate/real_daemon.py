"""A daemon of a configuration, under load: what the simulator is held to."""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from omniserve.bench.load.grpc_target import GrpcTarget
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.run import OnProgress, run_load
from omniserve.bench.load.streams import Stream
from omniserve.bench.run_record import RunRecord
from omniserve.config import Config
from omniserve.demo.daemon_child import DaemonChild
from omniserve.others_meter import OthersMeter


@dataclass(frozen=True, slots=True)
class RealRun:
    """One run, and how much others disturbed it."""

    record: RunRecord
    others_cores: float
    """That processes besides daemon and load generator used."""


class RealDaemon:
    """Takes one run after the other."""

    def __init__(self, target: GrpcTarget) -> None:
        self._target = target

    async def run(
        self,
        streams: Sequence[Stream],
        options: LoadOptions,
        on_progress: OnProgress | None = None,
    ) -> RealRun:
        """Raises RequestFailed where the daemon does not answer."""
        meter = OthersMeter()
        record = await run_load(self._target, streams, options, on_progress)
        return RealRun(record, meter.cores())


@asynccontextmanager
async def real_daemon(config: Config) -> AsyncIterator[RealDaemon]:
    """Starts a daemon on free ports; it ends with the block. Raises DaemonFailed."""
    with tempfile.TemporaryDirectory(prefix="omniserve-simulate-") as directory:
        async with DaemonChild(config, Path(directory) / "daemon.log") as child:
            addresses = await child.start()
            target = GrpcTarget(addresses.grpc, f"http://{addresses.http}")
            try:
                yield RealDaemon(target)
            finally:
                await target.close()
