"""A status as a picture of text."""

from collections import deque
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from omniserve.charts.text import NOTHING, format_age, format_rate, format_share
from omniserve.commands.model_state import trouble_words
from omniserve.terminal import printable
from omniserve.top.tables import (
    bar,
    host_kv_table,
    kv_table,
    models_table,
    pool,
    refusals_table,
    requests_table,
    shares_with_others,
    sharing_table,
    sparks,
    tenants_table,
)
from omniserve.top.text_table import Cell, text_table
from omniserve.v1 import omniserve_pb2 as pb

MAX_LINES = 60
"""Where there is no screen that could be too low."""
NUM_LOOKS = 16
_MAX_REFUSALS = 6
_CLASS_STYLES = {"latency_sensitive": "bold blue", "best_effort": "yellow"}
_STATE_STYLES = {"ready": "bold green", "failed": "bold red"}


class View:
    """Remembers the last looks, for what changes."""

    def __init__(self, hint: str = "") -> None:
        """`hint` is shown to whoever looks."""
        self._hint = hint
        self._rates: dict[tuple[str, str], deque[float]] = {}
        self._newest: pb.Status | None = None

    def picture(self, status: pb.Status, num_lines: int = MAX_LINES) -> RenderableType:
        """At most about `num_lines` high; requests and refusals get what the rest leaves."""
        self._newest = status
        for tier in status.tiers:
            rates = self._rates.setdefault((tier.model, tier.tier), deque(maxlen=NUM_LOOKS))
            rates.append(tier.output_tokens_per_s)
        return Group(self._head(status), *self._body(status, num_lines))

    def lost(self, reason: str, num_lines: int = MAX_LINES) -> RenderableType:
        """What was seen last, and why there is nothing newer."""
        warning = _line((f"trying again: {printable(reason)}", "bold red"))
        if self._newest is None:
            return warning
        return Group(warning, *self._body(self._newest, num_lines))

    def _head(self, status: pb.Status) -> Text:
        restarts = status.num_engine_restarts
        return _line(
            ("OmniServe ", "bold"),
            f"{printable(status.version)} ",
            (printable(status.state), _STATE_STYLES.get(status.state, "bold yellow")),
            f"  {printable(status.device)}  up {format_age(status.uptime_s)}",
            (f"  engine restarts {restarts}" if restarts else "", "yellow"),
            (f"  {self._hint}", "dim"),
        )

    def _body(self, status: pb.Status, num_lines: int) -> Iterator[RenderableType]:
        yield _host(status.host)
        for model in status.models:
            if model.error:
                yield _line((printable(trouble_words(model)), "red"))
        for problem in status.reload_error.splitlines():
            yield _line((f"the configuration file was refused: {printable(problem)}", "red"))
        yield Text()
        yield self._tiers(status)
        yield Text()
        yield models_table(status.models)
        num_left = num_lines - 8 - len(status.tiers) - len(status.models)
        for table in (kv_table(status.models), host_kv_table(status.models)):
            if table is not None:
                yield Text()
                yield table
                num_left -= table.row_count + 2
        loaded = [model for model in status.models if model.HasField("weights")]
        if shares_with_others(loaded):
            yield Text()
            yield sharing_table(loaded)
            num_left -= len(loaded) + 2
        if status.tenants:
            yield Text()
            yield tenants_table(status.tenants)
            num_left -= len(status.tenants) + 2
        num_refusals = min(len(status.refusals), _MAX_REFUSALS, max(1, num_left // 3))
        if num_refusals:
            num_left -= num_refusals + 2
        if status.requests:
            yield Text()
            yield requests_table(status.requests, max(1, num_left - 3))
        if num_refusals:
            yield Text()
            yield refusals_table(status.refusals[:num_refusals])

    def _tiers(self, status: pb.Status) -> Table:
        headings = ("tier", "model", "running>", "waiting>", "TTFT in time", "TPOT in time")
        # One look makes no line.
        top = max((max(rates) for rates in self._rates.values() if len(rates) > 1), default=None)
        rows: list[list[Cell]] = []
        for tier in status.tiers:
            style = _CLASS_STYLES.get(tier.service_class, "")
            rates = self._rates[tier.model, tier.tier]
            rows.append(
                [
                    Text(printable(tier.tier), style=style),
                    Text(printable(tier.model) if len(status.models) > 1 else ""),
                    f"{tier.num_running:,}",
                    f"{tier.num_waiting:,}",
                    _attained(tier, "ttft"),
                    _attained(tier, "tpot"),
                    format_rate(tier.output_tokens_per_s),
                    Text("" if top is None else sparks(rates, top), style=style),
                    f"{tier.num_refused:,}",
                ]
            )
        return text_table((*headings, "tokens/s>", "of late", "refused>"), rows)


def _host(host: pb.HostStatus) -> Text:
    parts: list[Text | str] = [
        *("cores ", bar(host.busy_share, "green"), f" {host.busy_share:.0%} of {host.num_cores}"),
        *("  memory ", pool(host.memory_used_bytes, host.memory_total_bytes)),
    ]
    if host.num_host_cores:
        now = "at work" if host.has_host_cores else "lent to the device"
        parts.append(f"  host attention: {host.num_host_cores}, {now}")
    return _line(*parts)


def _attained(tier: pb.TierStatus, name: str) -> Text:
    """The share, and the limit, as short as it can be."""
    if not tier.HasField(f"{name}_ms"):
        return Text(NOTHING, style="dim")
    limit_ms = getattr(tier, f"{name}_ms")
    limit = f" ≤ {limit_ms:g} ms" if limit_ms < 1000 else f" ≤ {limit_ms / 1000:g} s"
    if not tier.HasField(f"{name}_attainment"):
        return Text(f"{NOTHING}{limit}", style="dim")
    share = getattr(tier, f"{name}_attainment")
    style = "green" if share >= tier.percentile / 100 else "bold red"
    return Text.assemble((format_share(share), style), (limit, "dim"))


def _line(*parts: str | Text | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
