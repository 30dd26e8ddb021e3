"""What the trials say, as tables."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from api_memory import MIB, Memory
from api_trials import Case, Procedure, Trial

GOAL_TOKENS_PER_S = 15_000
GOAL_ADDED_MS = 1.0


@dataclass(frozen=True, slots=True)
class Pairing:
    """One case: the trials of both servers, round by round."""

    case: Case
    ours: list[Trial]
    bare: list[Trial]

    @property
    def ratios(self) -> list[float]:
        """Tokens per second of ours by those of the bare server, of each round."""
        return [
            mine.tokens_per_s / other.tokens_per_s
            for mine, other in zip(self.ours, self.bare, strict=True)
        ]

    @property
    def added_ms(self) -> list[float]:
        """Median age of ours less that of the bare server, of each round."""
        return [
            mine.p50_ms - other.p50_ms for mine, other in zip(self.ours, self.bare, strict=True)
        ]


def pairings(trials: Iterable[Trial]) -> list[Pairing]:
    found: dict[Case, Pairing] = {}
    for trial in trials:
        pairing = found.setdefault(trial.case, Pairing(trial.case, [], []))
        (pairing.ours if trial.server == "omniserve" else pairing.bare).append(trial)
    return list(found.values())


def document(
    results: Sequence[Pairing],
    memory: Memory | None,
    procedure: Procedure,
    machine: str,
    command: str,
) -> str:
    lines = [f"`{command}`", "", machine, ""]
    for pace, title, table in (
        ("flood", "As fast as tokens reach the client", _flood_table),
        ("paced", f"One token on each stream every {procedure.step_ms:g} ms", _paced_table),
    ):
        chosen = [result for result in results if result.case.pace == pace]
        if chosen:
            lines += [f"## {title}", "", *table(chosen), ""]
    if memory is not None:
        lines += ["## Memory", "", *_memory_lines(memory), ""]
    return "\n".join(lines)


def _flood_table(results: Sequence[Pairing]) -> list[str]:
    lines = [
        "| wire | streams | tokens/s | tokens per message | bare tokens/s | ratio | spread "
        "| µs a token | bare µs a token | client, cores |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours, bare = result.ours, result.bare
        merged = _median(trial.tokens_per_s / trial.messages_per_s for trial in ours)
        lines.append(
            f"| {result.case.wire} | {result.case.num_streams} "
            f"| {_median(trial.tokens_per_s for trial in ours):,.0f} | {merged:.2f} "
            f"| {_median(trial.tokens_per_s for trial in bare):,.0f} "
            f"| **{_median(result.ratios):.2f}** | {_spread(result.ratios, '.2f')} "
            f"| {_server_us(ours)} | {_server_us(bare)} "
            f"| {_median(trial.client_share for trial in ours):.2f} |"
        )
    return lines


def _paced_table(results: Sequence[Pairing]) -> list[str]:
    lines = [
        "| wire | streams | tokens/s | p50 / p90 / p99 ms | bare p50 / p90 / p99 ms "
        "| added at p50, ms | spread | µs a token | bare µs a token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours, bare = result.ours, result.bare
        lines.append(
            f"| {result.case.wire} | {result.case.num_streams} "
            f"| {_median(trial.tokens_per_s for trial in ours):,.0f} "
            f"| {_ages(ours)} | {_ages(bare)} "
            f"| **{_median(result.added_ms):.2f}** | {_spread(result.added_ms, '.2f')} "
            f"| {_server_us(ours)} | {_server_us(bare)} |"
        )
    return lines


def _server_us(trials: Sequence[Trial]) -> str:
    return f"{_median(trial.server_us_per_token for trial in trials):.1f}"


def _ages(trials: Sequence[Trial]) -> str:
    p50, p90, p99 = (
        _median(getattr(trial, name) for trial in trials) for name in ("p50_ms", "p90_ms", "p99_ms")
    )
    return f"{p50:.2f} / {p90:.2f} / {p99:.2f}"


def _memory_lines(memory: Memory) -> list[str]:
    num_requests = memory.samples[-1][0]
    return [
        "| requests | resident MiB |",
        "|---|---|",
        *(f"| {ended:,} | {rss / MIB:.1f} |" for ended, rss in memory.samples),
        "",
        f"{num_requests:,} requests at {memory.requests_per_s:,.0f} a second; "
        f"growth once settled: {memory.growth_bytes / MIB:+.1f} MiB.",
    ]


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}}..{max(values):{form}}"


def goals_met(results: Sequence[Pairing]) -> list[tuple[str, bool]]:
    """The goals that these results can be held to, with whether they are met."""
    goals = []
    floods = [each for each in results if (each.case.wire, each.case.pace) == ("grpc", "flood")]
    if floods:
        best = max(_median(trial.tokens_per_s for trial in each.ours) for each in floods)
        name = f"gRPC tokens/s on one core: {best:,.0f} of {GOAL_TOKENS_PER_S:,}"
        goals.append((name, best >= GOAL_TOKENS_PER_S))
    for each in results:
        if each.case.pace == "paced":
            added_ms = _median(each.added_ms)
            name = f"added at p50, {each.case.wire}, {each.case.num_streams} streams: "
            goals.append(
                (f"{name}{added_ms:.2f} ms of {GOAL_ADDED_MS:g}", added_ms <= GOAL_ADDED_MS)
            )
    return goals
