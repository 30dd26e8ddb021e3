"""The most that piggybacking could do, from what was measured in the same run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from piggyback_cases import Cell, Load
from piggyback_results import Series

ENOUGH = 0.8
"""Part of a limit from which on it is said to bind."""


@dataclass(frozen=True, slots=True)
class DenseTimes:
    """Seconds of the dense layers of a step, by its number of rows."""

    seconds_by_rows: Mapping[int, float]

    def of(self, num_rows: float) -> float:
        """Between two measured numbers on the line through them."""
        known = sorted(self.seconds_by_rows.items())
        for (left, at_left), (right, at_right) in pairwise(known):
            if num_rows <= right:
                return at_left + (num_rows - left) * (at_right - at_left) / (right - left)
        return known[-1][1]

    def rows_within(self, num_rows: int, extra_s: float) -> float:
        """Rows that `extra_s` more seconds pay for, beside `num_rows`."""
        low, high = 0.0, float(max(self.seconds_by_rows) - num_rows)
        goal_s = self.of(num_rows) + extra_s
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.of(num_rows + middle) <= goal_s else (low, middle)
        return low

    def most_rows_per_s(self, most_rows: int) -> float:
        """Rows a second in steps that carry nothing else."""
        return max(
            rows / seconds for rows, seconds in self.seconds_by_rows.items() if rows <= most_rows
        )


@dataclass(slots=True)
class Base:
    """Measured beside the sweep, once."""

    num_layers: int
    kv_bytes_per_token: int
    dense: DenseTimes
    host_bytes_per_s: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By context: KV that host attention reads, beside an idle device and beside LS alone."""
    ls_step_s: tuple[float, float] = (0.0, 0.0)
    """LS alone, beside an idle host and beside one that reads all the time."""

    @property
    def slowdown(self) -> float:
        """Of a step of LS alone, by a host that reads all the time."""
        alone_s, beside_s = self.ls_step_s
        return beside_s / alone_s if alone_s else 1.0


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """Seconds that one prompt takes to compute."""

    alone_s: float
    """On an idle device."""
    beside_ls_s: float
    ls_tpot_s: float
    """99 % of latency-sensitive TPOT meanwhile."""

    def at(self, duty: float) -> float:
        """Where latency-sensitive work is there for a part `duty` of the time."""
        return 1 / ((1 - duty) / self.alone_s + duty / self.beside_ls_s)


@dataclass(frozen=True, slots=True)
class Bound:
    """Tokens a second out of the lanes that each limit allows."""

    limits: dict[str, float]

    @property
    def name(self) -> str:
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def tokens_per_s(self) -> float:
        return self.limits[self.name]

    def binding(self, tokens_per_s: float) -> str:
        """The limit that was reached, or all but reached."""
        return self.name if tokens_per_s >= ENOUGH * self.tokens_per_s else "none"


def bound_of(
    base: Base,
    load: Load,
    cell: Cell,
    duty: float,
    piggybacking: Series,
    ls_alone_s: float,
    ls_beside_residents_s: float,
    ls_limit: float,
) -> Bound:
    """min(host bandwidth, slack for dense rows, requests in flight).

    ls_alone_s: median TPOT of LS alone; ls_beside_residents_s: the same beside the best-effort
    requests that stay on the device; ls_limit: how many times ls_alone_s it may become.
    """
    mean_context = cell.context + load.be_output / 2
    beside_device = base.host_bytes_per_s[cell.context][1]
    return Bound(
        {
            "host bandwidth": beside_device / (base.kv_bytes_per_token * mean_context),
            "dense rows": _dense_limit(
                base, load, cell, duty, ls_alone_s, ls_beside_residents_s, ls_limit
            ),
            "requests in flight": in_flight_limit(base, piggybacking),
        }
    )


def in_flight_limit(base: Base, piggybacking: Series) -> float:
    """Offloaded requests over layers times hop delay, both as they were."""
    hop_s = piggybacking.hop_steps * piggybacking.step_s
    return piggybacking.num_offloaded / (base.num_layers * hop_s) if hop_s else 0.0


def _dense_limit(
    base: Base,
    load: Load,
    cell: Cell,
    duty: float,
    ls_alone_s: float,
    ls_beside_residents_s: float,
    ls_limit: float,
) -> float:
    most_rows = max(base.dense.seconds_by_rows)
    without_ls = base.dense.most_rows_per_s(most_rows)
    if not duty:
        return without_ls
    step_s = ls_limit * ls_alone_s
    num_rows = load.ls_requests + cell.num_resident(load)
    slack_s = max(0.0, step_s - ls_beside_residents_s)
    beside_ls = base.dense.rows_within(num_rows, slack_s) / step_s
    return duty * beside_ls + (1 - duty) * without_ls


def with_prefill(tokens_per_s: float, prefill_s: float, output_tokens: int) -> float:
    """Speed where each request's prompt is computed first, and nothing else runs meanwhile."""
    if not tokens_per_s:
        return 0.0
    return 1 / (1 / tokens_per_s + prefill_s / output_tokens)
