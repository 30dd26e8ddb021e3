"""What a finished run amounts to."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from omniserve.demo.clients import Served
from omniserve.demo.measure import TierSummary, summarise
from omniserve.demo.options import Addresses, DemoOptions
from omniserve.demo.traffic import Record
from omniserve.error_groups import count_alike


@dataclass(frozen=True, slots=True)
class DemoResult:
    options: DemoOptions
    served: Served
    addresses: Addresses
    record: Record
    summaries: tuple[TierSummary, ...]
    finished_at: datetime
    num_cores: int
    ready_after_s: float | None
    """From starting the daemon to its ready line; None for one that ran already."""
    log_path: Path | None

    @property
    def num_failed(self) -> int:
        return sum(summary.num_failed for summary in self.summaries)

    @property
    def num_cut_off(self) -> int:
        return sum(summary.num_cut_off for summary in self.summaries)

    def errors(self) -> dict[str, int]:
        """How often each kind came, in order of first appearance."""
        return count_alike(
            f"{trace.tier}: {trace.error}"
            for trace in self.record.traces
            if trace.outcome == "failed"
        )


def make_result(
    options: DemoOptions,
    served: Served,
    addresses: Addresses,
    record: Record,
    ready_after_s: float | None,
    log_path: Path | None,
) -> DemoResult:
    return DemoResult(
        options=options,
        served=served,
        addresses=addresses,
        record=record,
        summaries=tuple(
            summarise(tier, record.traces, record.window_s)
            for tier in (served.interactive, served.batch)
        ),
        finished_at=datetime.now(),
        num_cores=len(os.sched_getaffinity(0)),
        ready_after_s=ready_after_s,
        log_path=log_path,
    )
