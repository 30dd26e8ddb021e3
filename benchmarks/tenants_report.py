"""What one tenant's flood does to the other's first tokens."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tenants_load import Window

ALONE, WITHIN, FLOOD = "alone", "within quota", "flood"
CONDITIONS = (ALONE, WITHIN, FLOOD)
GOAL_CHANGE = 0.10


def _ttft_ms(windows: Sequence[Window], percent: float) -> float:
    values = [ttft_s for window in windows for ttft_s in window.ttfts_s]
    return float(np.percentile(values, percent)) * 1e3


@dataclass(frozen=True, slots=True)
class Verdict:
    """p99 of the first token under a flood, against the same tenant within its quota."""

    windows: Sequence[Window]

    def of(self, condition: str) -> list[Window]:
        return [window for window in self.windows if window.condition == condition]

    def ttft_ms(self, condition: str, percent: float) -> float:
        """Over all windows of a condition."""
        return _ttft_ms(self.of(condition), percent)

    def p99s_ms(self, condition: str) -> list[float]:
        """Of each window by itself."""
        return [_ttft_ms([window], 99) for window in self.of(condition)]

    @property
    def change(self) -> float:
        return self.ttft_ms(FLOOD, 99) / self.ttft_ms(WITHIN, 99) - 1

    @property
    def repeat_spread(self) -> float:
        """How far a window within the quota is from their middle, at most."""
        p99s_ms = self.p99s_ms(WITHIN)
        middle = statistics.median(p99s_ms)
        return max(abs(p99_ms / middle - 1) for p99_ms in p99s_ms)

    @property
    def is_met(self) -> bool:
        return self.change <= GOAL_CHANGE + self.repeat_spread


def document(verdict: Verdict, machine: str, command: str) -> str:
    lines = [
        f"`{command}`",
        "",
        machine,
        "",
        "| the other tenant | requests | refused | TTFT p50 / p90 / p99 ms | p99 of windows, ms "
        "| the other's answers | the other's refusals |",
        "|---|---|---|---|---|---|---|",
    ]
    for condition in CONDITIONS:
        windows = verdict.of(condition)
        p50, p90, p99 = (verdict.ttft_ms(condition, percent) for percent in (50, 90, 99))
        p99s_ms = verdict.p99s_ms(condition)
        lines.append(
            f"| {condition} | {sum(len(window.ttfts_s) for window in windows):,} "
            f"| {sum(window.num_refused for window in windows):,} "
            f"| {p50:.1f} / {p90:.1f} / {p99:.1f} | {min(p99s_ms):.1f}..{max(p99s_ms):.1f} "
            f"| {sum(window.num_other_done for window in windows):,} "
            f"| {sum(window.num_other_refused for window in windows):,} |"
        )
    lines += [
        "",
        f"p99 under the flood against that within the quota: {verdict.change:+.1%}; windows within "
        f"the quota are up to {verdict.repeat_spread:.1%} from their middle. "
        f"Goal, {GOAL_CHANGE:.0%} beyond that spread: {'met' if verdict.is_met else 'MISSED'}.",
    ]
    return "\n".join(lines)
