"""Figures of traces as rows of text, for the terminal and for pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from omniserve.bench.trace.describe import LengthFigures, TraceDescription
from omniserve.charts.text import NOTHING

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure of one or several traces."""

    label: str
    values: tuple[str, ...]
    """One for each trace."""
    meaning: str


def facts(descriptions: Sequence[TraceDescription]) -> list[Fact]:
    """Rows that no trace has anything for are left out."""
    columns = [_values(each) for each in descriptions]
    rows = [
        Fact(label, tuple(column[place] for column in columns), meaning)
        for place, (label, meaning) in enumerate(_ROWS)
    ]
    rows += _counted("tier", [each.tiers for each in descriptions])
    rows += _counted("tenant", [each.tenants for each in descriptions])
    return [row for row in rows if set(row.values) != {NOTHING}]


def as_text(descriptions: Sequence[TraceDescription]) -> str:
    """A table for the terminal, ending in a newline; meanings are given for a single trace."""
    rows = [("", *(each.name for each in descriptions))]
    found = facts(descriptions)
    rows += [(fact.label, *fact.values) for fact in found]
    meanings = ["", *(fact.meaning if len(descriptions) == 1 else "" for fact in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, meaning in zip(rows, meanings, strict=True):
        label = row[0].ljust(widths[0])
        values = [value.rjust(width) for value, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(_GAP.join((label, *values, meaning)).rstrip())
    return "\n".join(lines) + "\n"


_ROWS = (
    ("requests", ""),
    ("failed", "without a token when recorded"),
    ("duration s", "from 0 to the last arrival"),
    ("requests/s", ""),
    ("tick s", "times are this coarse; spread out for the figures below"),
    ("gap CV", "deviation over mean of the gaps between arrivals; Poisson: 1"),
    ("gap CV in minutes", "median of single minutes (p10 - p90)"),
    ("Fano 1 s", "variance over mean of arrivals in 1 s; Poisson: 1"),
    ("Fano 10 s", "in 10 s"),
    ("Fano 60 s", "in 60 s"),
    ("idle minutes", "without an arrival"),
    ("peak minute", "over the mean one"),
    ("minute memory", "autocorrelation of successive minutes"),
    ("prompt tokens", "mean (smallest - largest)"),
    ("prompt p50", ""),
    ("prompt p95", ""),
    ("prompt p99", ""),
    ("output tokens", "mean (smallest - largest)"),
    ("output p50", ""),
    ("output p95", ""),
    ("output p99", ""),
    ("rank correlation", "of prompt and output tokens (Spearman)"),
    ("output by prompt", "median output of five groups, from short to long prompts"),
    ("prompt : output", "prompt tokens for each output token"),
    ("blocks reused", "prompt blocks that an earlier request has had"),
    ("blocks used once", "of the different blocks"),
    ("sessions", ""),
    ("turns a session", "mean"),
)


def _values(about: TraceDescription) -> tuple[str, ...]:
    """In the order of _ROWS."""
    arrivals, prefixes = about.arrivals, about.prefixes
    minute_cv = arrivals.minute_gap_cv
    spread = (
        f"{minute_cv['p50']:.2f} ({minute_cv['p10']:.2f} - {minute_cv['p90']:.2f})"
        if minute_cv
        else NOTHING
    )
    return (
        f"{about.num_requests:,}",
        f"{about.num_failed:,}" if about.num_failed else NOTHING,
        f"{about.duration_s:,.1f}",
        _number(arrivals.rate_per_s),
        _number(about.tick_s),
        _number(arrivals.gap_cv),
        spread,
        *(_number(value) for value in arrivals.fano.values()),
        _share(arrivals.idle_minute_share),
        _number(arrivals.peak_over_mean_minute),
        _number(arrivals.minute_autocorrelation),
        *_length_values(about.prompt),
        *_length_values(about.output),
        _number(about.spearman),
        " ".join(f"{median:.0f}" for _, median in about.output_by_prompt),
        _number(about.prompt_over_output),
        _share(prefixes.reused_share if prefixes else None),
        _share(prefixes.once_used_share if prefixes else None),
        f"{about.num_sessions:,}" if about.num_sessions else NOTHING,
        _number(about.turns_per_session),
    )


def _length_values(lengths: LengthFigures) -> tuple[str, ...]:
    return (
        f"{lengths.mean:,.0f} ({lengths.smallest:,} - {lengths.largest:,})",
        *(f"{lengths.quantiles[level]:,.0f}" for level in ("p50", "p95", "p99")),
    )


def _counted(kind: str, counts: Sequence[dict[str, int]]) -> list[Fact]:
    """The requests of each tier or tenant that any of the traces has."""
    names = dict.fromkeys(name for each in counts for name in each)
    return [
        Fact(
            f"{kind} {name}",
            tuple(f"{each[name]:,}" if name in each else NOTHING for each in counts),
            "requests",
        )
        for name in names
    ]


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"
