"""Azure LLM inference traces of 2023, 2024 and 2025: CSV of wall times and token counts.

Columns TIMESTAMP (to 100 ns), ContextTokens, GeneratedTokens; others are passed over.
"""

import csv
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO

from omniserve.bench.trace.formats.recorded import recorded
from omniserve.bench.trace.formats.rows import Row, csv_rows
from omniserve.bench.trace.formats.trace_format import TraceFormat
from omniserve.bench.trace.trace import Trace, TraceRequest

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITTEN_EPOCH = datetime(2000, 1, 1)
_TICKS_PER_S = 10_000_000


def _is_first_line(line: str) -> bool:
    return set(COLUMNS) <= {name.strip() for name in line.split(",")}


def _read(path: Path) -> Trace:
    """The first request arrives at 0; times without an offset are taken as UTC."""
    rows = [
        (_nanoseconds(row), row.whole("ContextTokens"), row.whole("GeneratedTokens"))
        for row in csv_rows(path)
    ]
    start_ns = min((row[0] for row in rows), default=0)
    requests = [
        recorded((time_ns - start_ns) / 1e9, prompt_tokens, output_tokens)
        for time_ns, prompt_tokens, output_tokens in rows
    ]
    return Trace.sorted(path.stem, requests)


def _write(trace: Trace, file: TextIO) -> None:
    """Times count from midnight of 2000-01-01."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for request in trace:
        writer.writerow((_timestamp(request), request.prompt_tokens, request.output_tokens))


def _nanoseconds(row: Row) -> int:
    """Since 1970. datetime alone would drop the digits after the microseconds."""
    text = str(row.present("TIMESTAMP"))
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        seconds, digits, offset = match.groups()
        time = datetime.fromisoformat(seconds + (offset or "Z"))
    except ValueError:
        raise row.error("TIMESTAMP", text, "a time such as 2023-11-16 18:15:46.6805900") from None
    whole_s = (time - _EPOCH) // timedelta(seconds=1)
    return whole_s * 1_000_000_000 + int((digits or "0").ljust(9, "0"))


def _timestamp(request: TraceRequest) -> str:
    seconds, ticks = divmod(round(request.arrival_s * _TICKS_PER_S), _TICKS_PER_S)
    return f"{_WRITTEN_EPOCH + timedelta(seconds=seconds)}.{ticks:07d}"


FORMAT = TraceFormat("azure", _is_first_line, _read, _write, frozenset({"failed"}))
