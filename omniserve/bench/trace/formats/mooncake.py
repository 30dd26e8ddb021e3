"""Mooncake's traces: JSONL with the hashes of prompt blocks.

Keys timestamp (ms), input_length, output_length (tokens), hash_ids (one for each block of 512
prompt tokens and all that stands before it, the last partial block too).
"""

import json
from pathlib import Path
from typing import TextIO

from omniserve.bench.trace.formats.recorded import recorded
from omniserve.bench.trace.formats.rows import Row, json_rows
from omniserve.bench.trace.formats.trace_format import TraceFormat
from omniserve.bench.trace.trace import Trace, TraceRequest


def _is_first_line(line: str) -> bool:
    return line.startswith("{") and '"input_length"' in line and '"timestamp"' in line


def _read(path: Path) -> Trace:
    """The first request arrives at 0."""
    rows = list(json_rows(path))
    times_ms = [row.number("timestamp") for row in rows]
    start_ms = min(times_ms, default=0.0)
    requests = [
        _request(row, round((at_ms - start_ms) / 1000, 9))
        for row, at_ms in zip(rows, times_ms, strict=True)
    ]
    return Trace.sorted(path.stem, requests)


def _write(trace: Trace, file: TextIO) -> None:
    """Times in whole milliseconds, as in the originals where these are enough."""
    for request in trace:
        at_ms = round(request.arrival_s * 1000, 6)
        row = {
            "timestamp": int(at_ms) if at_ms.is_integer() else at_ms,
            "input_length": request.prompt_tokens,
            "output_length": request.output_tokens,
            "hash_ids": request.prefix_hashes,
        }
        file.write(json.dumps(row) + "\n")


def _request(row: Row, arrival_s: float) -> TraceRequest:
    return recorded(
        arrival_s,
        row.whole("input_length"),
        row.whole("output_length"),
        prefix_hashes=row.whole_numbers("hash_ids"),
    )


FORMAT = TraceFormat(
    "mooncake", _is_first_line, _read, _write, frozenset({"prefix_hashes", "failed"})
)
