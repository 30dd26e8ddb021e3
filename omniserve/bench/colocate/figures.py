"""What windows amount to: figures of each, then of all windows of a contender in a scene."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omniserve.bench.colocate.layer_waits import LayerWaits, all_together, layer_waits_of
from omniserve.bench.colocate.undisturbed import OTHERS_CORES
from omniserve.bench.colocate.workload import LS_STREAM
from omniserve.bench.report.summary import summarise
from omniserve.bench.run_record import RunRecord


@dataclass(frozen=True, slots=True)
class Figures:
    """One window of one contender; latencies in ms, shares from 0 to 1."""

    num_ls: int
    """Sent; shares are of all of them, and those refused have missed their objectives."""
    num_refused: int
    ls_joint: float | None
    ls_ttft_share: float | None
    ls_tpot_share: float | None
    ls_ttft_p50_ms: float | None
    ls_ttft_p99_ms: float | None
    ls_tpot_p50_ms: float | None
    ls_tpot_p99_ms: float | None
    ls_goodput_tokens_per_s: float | None
    """Output of LS requests that met both objectives."""
    be_tokens_per_s: float
    num_failed: int
    """Failed and rejected requests of both streams."""
    generator_cores: float
    lateness_p99_ms: float | None
    others_cores: float
    """Used by processes that have no part in it, on average."""
    layer_waits: LayerWaits | None = None
    """Of LS requests that shared a daemon with another model."""

    @property
    def num_taken(self) -> int:
        """LS requests that the server did not refuse."""
        return self.num_ls - self.num_refused

    @property
    def ls_joint_of_taken(self) -> float | None:
        return self._of_taken(self.ls_joint)

    @property
    def ls_ttft_share_of_taken(self) -> float | None:
        return self._of_taken(self.ls_ttft_share)

    def _of_taken(self, share: float | None) -> float | None:
        if share is None or not self.num_taken:
            return None
        return share * self.num_ls / self.num_taken


def figures_of(record: RunRecord) -> Figures:
    """Of its measured part."""
    summary = summarise(record)
    streams = {stream.info.name: stream for stream in summary.streams}
    ls = streams[LS_STREAM]
    best_effort = [
        stream for stream in summary.streams if stream.info.service_class == "best_effort"
    ]
    return Figures(
        num_ls=ls.num_requests,
        num_refused=ls.num_rejected,
        ls_joint=ls.attainment.joint,
        ls_ttft_share=ls.attainment.ttft,
        ls_tpot_share=ls.attainment.tpot,
        ls_ttft_p50_ms=ls.ttft.p50_ms,
        ls_ttft_p99_ms=ls.ttft.p99_ms,
        ls_tpot_p50_ms=ls.tpot.p50_ms,
        ls_tpot_p99_ms=ls.tpot.p99_ms,
        ls_goodput_tokens_per_s=ls.goodput_tokens_per_s,
        be_tokens_per_s=sum(stream.output_tokens_per_s for stream in best_effort),
        num_failed=sum(stream.num_failed + stream.num_rejected for stream in summary.streams),
        generator_cores=summary.generator_cores,
        lateness_p99_ms=ls.lateness.p99_ms,
        others_cores=float(record.facts.get(OTHERS_CORES, 0.0)),
        layer_waits=layer_waits_of(record),
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of one figure over windows."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cell:
    """All windows of one contender in one scene, one a round."""

    contender: str
    windows: tuple[Figures, ...]

    def spread(self, figure: Callable[[Figures], float | None]) -> Spread | None:
        """None where no window has the figure."""
        return spread_of([figure(window) for window in self.windows])

    @property
    def layer_waits(self) -> LayerWaits | None:
        """Of all windows together."""
        return all_together(window.layer_waits for window in self.windows)

    def ratio(self, other: "Cell", figure: Callable[[Figures], float | None]) -> Spread | None:
        """This contender's figure over another's in the same round."""
        pairs = zip(self.windows, other.windows, strict=False)
        return spread_of([_ratio(figure(own), figure(base)) for own, base in pairs])


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """None where there is no value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.median(known), min(known), max(known))


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base
