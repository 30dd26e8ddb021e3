"""A forecast for the terminal: two lines for each tier."""

from collections.abc import Iterable

from omniserve.bench.report.rows import TextTable
from omniserve.v1 import omniserve_pb2 as pb

_HEADINGS = ("tier", "tiers", "requests", "refused", "TTFT met", "TPOT met", "tokens/s")


def forecast_table(forecast: Iterable[pb.TierForecast]) -> TextTable:
    rows: list[list[str]] = []
    for tier in forecast:
        for field, shown in (("before", "in force"), ("after", "file")):
            if tier.HasField(field):
                rows.append([tier.tier, shown, *_cells(getattr(tier, field))])
    return TextTable("forecast", _HEADINGS, rows)


def _cells(outcome: pb.TierOutcome) -> tuple[str, ...]:
    return (
        f"{outcome.num_requests:,}",
        f"{outcome.num_refused:,}",
        _share(outcome.ttft_attainment if outcome.HasField("ttft_attainment") else None),
        _share(outcome.tpot_attainment if outcome.HasField("tpot_attainment") else None),
        f"{outcome.tokens_per_s:,.1f}",
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
