"""Tells the server's status, and what it was over the last minutes."""

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec

from omniserve.message_fields import message_fields
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.status.feed import StatusFeed
from omniserve.status.history import SAMPLE_S, Sample, StatusHistory
from omniserve.status.host_usage import HostMeter
from omniserve.status.status_message import status_message, totals_by_tier
from omniserve.v1 import omniserve_pb2 as pb


class StatusReporter:
    """Of one daemon. What is said to be of late needs `run` to be running."""

    def __init__(
        self,
        service: GenerationService,
        reloader: Reloader,
        clock: Callable[[], float] = time.monotonic,
        meter: HostMeter | None = None,
    ) -> None:
        """`clock` is the one of the service."""
        self._service = service
        self._reloader = reloader
        self._clock = clock
        self._meter = meter or HostMeter()
        self._host = self._meter.measure()
        self._history = StatusHistory()
        self.feed = StatusFeed(lambda: msgspec.json.encode(message_fields(self.status())))

    async def run(self) -> NoReturn:
        """Samples and publishes until cancelled."""
        try:
            while True:
                self.sample()
                self.feed.publish()
                await asyncio.sleep(SAMPLE_S)
        finally:
            self.feed.close()

    def sample(self) -> None:
        """Takes note of this moment."""
        self._host = self._meter.measure()
        stats = self._service.status().stats
        self._history.add(
            Sample(
                at_s=self._clock(),
                output_tokens=totals_by_tier(self._service.metrics.tokens, "kind", ("output",)),
                kv_shares={
                    name: each.kv_used_bytes / each.kv_total_bytes if each.kv_total_bytes else 0.0
                    for name, each in stats.items()
                },
                busy_share=self._host.busy_share,
            )
        )

    def status(self) -> pb.Status:
        """Of now; what the machine does is of the last sample."""
        return status_message(
            self._service,
            host=self._host,
            tokens_per_s=self._history.tokens_per_s(),
            tenants=self._service.access.quotas.tenants_status(),
            reload_error=self._reloader.last_error,
            now_s=self._clock(),
        )

    def document(self) -> bytes:
        """Status and history as JSON."""
        document = {"status": message_fields(self.status()), "history": self._history.document()}
        return msgspec.json.encode(document)
