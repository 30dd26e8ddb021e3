"""What is seen while the demo runs: a table that is redrawn, or a line now and then."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from omniserve.charts.text import format_ms
from omniserve.demo.clients import Served
from omniserve.demo.measure import Tier, tokens_by_second, tpots_ms, ttfts_ms
from omniserve.demo.text import styled
from omniserve.demo.traffic import Record
from omniserve.percentiles import percentile

REDRAW_S = 0.5
LINE_S = 5.0
SPARK_S = 16
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class TierView:
    """One tier at this moment."""

    tier: Tier
    num_running: int
    num_waiting: int
    num_done: int
    num_refused: int
    num_failed: int
    ttft_p50_ms: float | None
    tpot_p50_ms: float | None
    tokens_per_s: tuple[float, ...]
    """Of each of the last full seconds, the newest last."""


def view_of(tier: Tier, record: Record) -> TierView:
    own = [trace for trace in record.traces if trace.tier == tier.name]
    num_waiting = sum(trace.is_waiting for trace in own)
    outcomes = [trace.outcome for trace in own]
    now = int(record.now_s())
    first = max(0, now - SPARK_S)
    return TierView(
        tier=tier,
        num_running=outcomes.count("running") - num_waiting,
        num_waiting=num_waiting,
        num_done=outcomes.count("done"),
        num_refused=outcomes.count("refused"),
        num_failed=outcomes.count("failed"),
        ttft_p50_ms=percentile(ttfts_ms(own), 50),
        tpot_p50_ms=percentile(tpots_ms(own), 50),
        tokens_per_s=tuple(tokens_by_second(own, first, now - first)),
    )


async def show_live(console: Console, served: Served, record: Record) -> None:
    """Redraws until cancelled; the last picture stays."""
    with Live(console=console, auto_refresh=False) as live:
        await _repeat(REDRAW_S, lambda: live.update(_picture(served, record), refresh=True))


async def show_lines(console: Console, served: Served, record: Record) -> None:
    """Prints a line now and then until cancelled."""
    await _repeat(LINE_S, lambda: console.print(_line(served, record), soft_wrap=True))


async def _repeat(interval_s: float, show: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(interval_s)
        show()


def _line(served: Served, record: Record) -> str:
    parts = [f"{record.now_s():4.0f} s"]
    for view in (view_of(served.interactive, record), view_of(served.batch, record)):
        rate = view.tokens_per_s[-1] if view.tokens_per_s else 0
        parts.append(
            f"{view.tier.name}: {view.num_running} running, {view.num_waiting} waiting, "
            f"{view.num_done} done, {view.num_refused} refused, {view.num_failed} failed, "
            f"{rate:.0f} tokens/s, "
            f"TTFT p50 {format_ms(view.ttft_p50_ms)} ms, TPOT p50 {format_ms(view.tpot_p50_ms)} ms"
        )
    used = _kv_share(record)
    return " | ".join(parts if used is None else [*parts, f"KV {used:.0%}"])


def _picture(served: Served, record: Record) -> RenderableType:
    views = (view_of(served.interactive, record), view_of(served.batch, record))
    top = max((rate for view in views for rate in view.tokens_per_s), default=0.0)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("tier", no_wrap=True, vertical="bottom")
    for name in ("running", "waiting", "done", "refused", "failed", "TTFT\np50 ms", "TPOT\np50 ms"):
        table.add_column(name, justify="right", vertical="bottom")
    table.add_column("tokens/s", justify="right", vertical="bottom")
    table.add_column(f"last {SPARK_S} s", min_width=SPARK_S, no_wrap=True, vertical="bottom")
    for view in views:
        table.add_row(
            styled(view.tier),
            str(view.num_running),
            str(view.num_waiting),
            str(view.num_done),
            str(view.num_refused),
            Text(str(view.num_failed), style="bold red" if view.num_failed else ""),
            format_ms(view.ttft_p50_ms),
            format_ms(view.tpot_p50_ms),
            f"{view.tokens_per_s[-1]:.0f}" if view.tokens_per_s else "-",
            _sparkline(view.tokens_per_s, top),
        )
    return Group(Text(), _clock(record), Text(), table, _kv_line(record))


def _clock(record: Record) -> RenderableType:
    now_s = record.now_s()
    line = Table.grid(padding=(0, 2, 0, 0))
    text = f"{min(now_s, record.window_s):3.0f} of {record.window_s:.0f} s"
    over = "letting the running requests end" if now_s > record.window_s else ""
    bar = ProgressBar(total=record.window_s, completed=min(now_s, record.window_s), width=30)
    line.add_row(text, bar, over)
    return line


def _kv_line(record: Record) -> Text:
    used = _kv_share(record)
    if used is None:
        return Text()
    total_mib = record.samples[-1].kv_total_bytes / (1 << 20)
    return Text(f"\nKV pool {used:4.0%} of {total_mib:.0f} MiB in use", style="dim")


def _kv_share(record: Record) -> float | None:
    if not record.samples or not record.samples[-1].kv_total_bytes:
        return None
    return record.samples[-1].kv_used_bytes / record.samples[-1].kv_total_bytes


def _sparkline(values: tuple[float, ...], top: float) -> str:
    if top <= 0:
        return ""
    last = len(_SPARKS) - 1
    return "".join(_SPARKS[min(last, round(value / top * last))] for value in values)
