"""What is seen while a run goes on: a table that is redrawn, or a line now and then."""

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.progress import Progress, StreamProgress
from omniserve.charts.text import format_ms, format_rate

LINE_S = 5.0
_COLUMNS = (
    *("running", "waiting", "done", "failed", "rejected"),
    *("TTFT\np50 ms", "TPOT\np50 ms", "tokens/s"),
)


class Display:
    """Redrawn where `is_live`; drawing takes the generator's own time, so it is seldom and small.

    The context ends the drawing; the last picture stays.
    """

    def __init__(self, console: Console, options: LoadOptions, *, is_live: bool) -> None:
        self._console = console
        self._options = options
        self._live = Live(console=console, auto_refresh=False) if is_live else None
        self._next_line_s = -options.warm_up_s

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.update(self._picture(progress), refresh=True)
        elif progress.at_s >= self._next_line_s:
            self._next_line_s = progress.at_s + LINE_S
            self._console.print(self._line(progress), soft_wrap=True)

    def _clock(self, progress: Progress) -> str:
        if progress.at_s < 0:
            return f"warming up, {-progress.at_s:.0f} s left"
        if progress.at_s > self._options.duration_s:
            return "letting the running requests end"
        return f"{progress.at_s:.0f} of {self._options.duration_s:.0f} s"

    def _picture(self, progress: Progress) -> RenderableType:
        table = Table(
            box=None,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            title=self._clock(progress),
            title_justify="left",
            header_style="dim",
        )
        table.add_column("stream", no_wrap=True, vertical="bottom")
        for heading in _COLUMNS:
            table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
        for stream in progress.streams:
            table.add_row(Text(stream.name), *_cells(stream))
        return table

    def _line(self, progress: Progress) -> str:
        streams = (
            f"{stream.name}: {stream.num_running} running, {stream.num_waiting} waiting, "
            f"{stream.num_done} done, {stream.num_failed} failed, {stream.num_rejected} rejected, "
            f"TTFT p50 {format_ms(stream.ttft_p50_ms)} ms, "
            f"TPOT p50 {format_ms(stream.tpot_p50_ms)} ms, {stream.tokens_per_s:.0f} tokens/s"
            for stream in progress.streams
        )
        return " | ".join((self._clock(progress), *streams))


def _cells(stream: StreamProgress) -> list[str]:
    return [
        str(stream.num_running),
        str(stream.num_waiting),
        str(stream.num_done),
        str(stream.num_failed),
        str(stream.num_rejected),
        format_ms(stream.ttft_p50_ms),
        format_ms(stream.tpot_p50_ms),
        format_rate(stream.tokens_per_s),
    ]
