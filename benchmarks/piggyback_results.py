"""What benchmarks/piggyback.py measured, and its statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lanes:
    """What an engine's piggybacking did in a window, and where it stood at its end."""

    num_tokens: int
    num_rows_joined: int
    """Counted at every layer."""
    hop_steps_sum: int
    kv_read_bytes: int
    num_swaps: int
    swap_bytes: int
    num_offloaded: float
    """Mean of the window's begin and end."""
    num_ready: float
    num_on_host: float

    @property
    def hop_steps(self) -> float:
        return self.hop_steps_sum / self.num_rows_joined if self.num_rows_joined else 0.0

    @classmethod
    def between(cls, before: Answer, after: Answer) -> "Lanes":
        """From two snapshots of PiggybackStats."""

        def grown(*names: str) -> int:
            return sum(int(after[name]) - int(before[name]) for name in names)

        def mean(name: str) -> float:
            return (float(before[name]) + float(after[name])) / 2

        return cls(
            num_tokens=grown("num_tokens"),
            num_rows_joined=grown("num_rows_joined"),
            hop_steps_sum=grown("hop_steps_sum"),
            kv_read_bytes=grown("host_kv_read_bytes"),
            num_swaps=grown("num_swaps_out", "num_swaps_in"),
            swap_bytes=grown("swap_out_bytes", "swap_in_bytes"),
            num_offloaded=mean("num_offloaded"),
            num_ready=mean("num_ready_rows"),
            num_on_host=mean("num_on_host"),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """One measurement of one contender."""

    seconds: float
    num_steps: int
    ls_gaps_s: list[float]
    be_tokens: int
    """On the device and by piggybacking."""
    overflow_be_per_s: float
    """Of the second engine, where there is one."""
    num_preemptions: int
    timings_s: dict[str, float]
    other_cores: float
    """Used meanwhile by programs that are no part of the benchmark."""
    lanes: Lanes | None
    """None where the engine does not piggyback."""

    @property
    def be_per_s(self) -> float:
        return self.be_tokens / self.seconds + self.overflow_be_per_s

    @property
    def lane_tokens_per_s(self) -> float:
        return self.lanes.num_tokens / self.seconds if self.lanes is not None else 0.0

    @property
    def step_s(self) -> float:
        return self.seconds / max(1, self.num_steps)

    @classmethod
    def of(cls, answers: Sequence[Answer], other_cores: float) -> "Window":
        """The first answer is that of the engine with latency-sensitive work."""
        first, *rest = answers
        before, after = first["before"], first["after"]
        piggybacks = before["piggyback"] is not None
        return cls(
            seconds=first["seconds"],
            num_steps=first["num_steps"],
            ls_gaps_s=first["ls_gaps_s"],
            be_tokens=first["be_tokens"],
            overflow_be_per_s=sum(answer["be_tokens"] / answer["seconds"] for answer in rest),
            num_preemptions=after["num_preemptions"] - before["num_preemptions"],
            timings_s=first["timings"],
            other_cores=other_cores,
            lanes=Lanes.between(before["piggyback"], after["piggyback"]) if piggybacks else None,
        )


@dataclass(slots=True)
class Series:
    """The windows of one contender under one load."""

    windows: list[Window] = field(default_factory=list)

    @property
    def be_per_s(self) -> float:
        return median(window.be_per_s for window in self.windows)

    @property
    def be_range(self) -> tuple[float, float]:
        speeds = [window.be_per_s for window in self.windows]
        return min(speeds), max(speeds)

    @property
    def lane_tokens_per_s(self) -> float:
        return median(window.lane_tokens_per_s for window in self.windows)

    @property
    def step_s(self) -> float:
        return median(window.step_s for window in self.windows)

    @property
    def gaps_s(self) -> list[float]:
        """Sorted, of all windows."""
        return sorted(gap for window in self.windows for gap in window.ls_gaps_s)

    def tpot_s(self, percent: int) -> float | None:
        """Of gaps between two tokens of a latency-sensitive request; None without such work."""
        return percentile(self.gaps_s, percent)

    @property
    def lanes(self) -> list[Lanes]:
        return [window.lanes for window in self.windows if window.lanes is not None]

    @property
    def hop_steps(self) -> float:
        rows = sum(lanes.num_rows_joined for lanes in self.lanes)
        return sum(lanes.hop_steps_sum for lanes in self.lanes) / rows if rows else 0.0

    @property
    def num_offloaded(self) -> float:
        return median(lanes.num_offloaded for lanes in self.lanes) if self.lanes else 0.0

    @property
    def kv_bytes_per_s(self) -> float:
        """KV that host attention read."""
        if not self.lanes:
            return 0.0
        return median(
            window.lanes.kv_read_bytes / window.seconds
            for window in self.windows
            if window.lanes is not None
        )


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """None without samples."""
    if len(samples) < 2:
        return samples[0] if samples else None
    return quantiles(samples, n=100, method="inclusive")[percent - 1]


def paired_tpot_ratios(ours: Series, theirs: Series, percent: int) -> list[float]:
    """Percentiles of TPOT against another contender's, in windows of the same round."""
    pairs = [
        (percentile(our.ls_gaps_s, percent), percentile(their.ls_gaps_s, percent))
        for our, their in zip(ours.windows, theirs.windows, strict=False)
    ]
    return [our / their for our, their in pairs if our is not None and their]


def paired_ratios(ours: Series, theirs: Series) -> list[float]:
    """Best-effort speed against another contender's, in windows of the same round."""
    pairs = zip(ours.windows, theirs.windows, strict=False)
    return [our.be_per_s / their.be_per_s for our, their in pairs if their.be_per_s]
