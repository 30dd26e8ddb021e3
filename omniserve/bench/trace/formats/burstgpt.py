"""BurstGPT traces: CSV of requests to ChatGPT and GPT-4, failed ones included.

Columns Timestamp (seconds since midnight of the first day), Model, Request tokens, Response tokens
(0: it failed), Total tokens, Log Type; later files also have Session ID and Elapsed time. A tenant
is the log that a request comes from, such as "GPT-4/API log".
"""

import csv
from pathlib import Path
from typing import TextIO

from omniserve.bench.trace.formats.recorded import recorded
from omniserve.bench.trace.formats.rows import Row, csv_rows
from omniserve.bench.trace.formats.trace_format import TraceFormat
from omniserve.bench.trace.trace import Trace, TraceRequest

_COLUMNS = (
    *("Timestamp", "Session ID", "Elapsed time", "Model"),
    *("Request tokens", "Response tokens", "Total tokens", "Log Type"),
)
_NEEDED = {"Timestamp", "Request tokens", "Response tokens"}
_CONVERSATION, _API = "Conversation log", "API log"


def _is_first_line(line: str) -> bool:
    return {name.strip() for name in line.split(",")} >= _NEEDED


def _read(path: Path) -> Trace:
    """The first request arrives at 0."""
    rows = list(csv_rows(path))
    times_s = [row.number("Timestamp") for row in rows]
    start_s = min(times_s, default=0.0)
    requests = [_request(row, at_s - start_s) for row, at_s in zip(rows, times_s, strict=True)]
    return Trace.sorted(path.stem, requests)


def _write(trace: Trace, file: TextIO) -> None:
    """The elapsed time is unknown and stays empty."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for request in trace:
        model, log_type = _log(request)
        prompt_tokens, output_tokens = request.prompt_tokens, request.output_tokens
        total_tokens = prompt_tokens + output_tokens
        counts = (prompt_tokens, output_tokens, total_tokens)
        at_s = repr(round(request.arrival_s, 9))
        writer.writerow((at_s, request.session, "", model, *counts, log_type))


def _request(row: Row, arrival_s: float) -> TraceRequest:
    log = (row.text("Model"), row.text("Log Type"))
    return recorded(
        # A difference of decimal fractions has more digits than they.
        round(arrival_s, 9),
        row.whole("Request tokens"),
        row.whole("Response tokens"),
        session=row.text("Session ID"),
        tenant="/".join(log) if log[1] else log[0],
    )


def _log(request: TraceRequest) -> tuple[str, str]:
    if not request.tenant:
        return "ChatGPT", _CONVERSATION if request.session else _API
    model, _, log_type = request.tenant.partition("/")
    return model, log_type


FORMAT = TraceFormat(
    "burstgpt", _is_first_line, _read, _write, frozenset({"session", "tenant", "failed"})
)
