"""APEX's traces: JSONL with StartTimeOffset (ns), ContextTokens, GeneratedTokens."""

import json
from pathlib import Path
from typing import TextIO

from omniserve.bench.trace.formats.recorded import recorded
from omniserve.bench.trace.formats.rows import json_rows
from omniserve.bench.trace.formats.trace_format import TraceFormat
from omniserve.bench.trace.trace import Trace


def _is_first_line(line: str) -> bool:
    return line.startswith("{") and '"StartTimeOffset"' in line


def _read(path: Path) -> Trace:
    """The first request arrives at 0."""
    rows = [
        (row.whole("StartTimeOffset"), row.whole("ContextTokens"), row.whole("GeneratedTokens"))
        for row in json_rows(path)
    ]
    start_ns = min((row[0] for row in rows), default=0)
    requests = [
        recorded((time_ns - start_ns) / 1e9, prompt_tokens, output_tokens)
        for time_ns, prompt_tokens, output_tokens in rows
    ]
    return Trace.sorted(path.stem, requests)


def _write(trace: Trace, file: TextIO) -> None:
    for request in trace:
        row = {
            "StartTimeOffset": round(request.arrival_s * 1e9),
            "ContextTokens": request.prompt_tokens,
            "GeneratedTokens": request.output_tokens,
        }
        file.write(json.dumps(row) + "\n")


FORMAT = TraceFormat("apex", _is_first_line, _read, _write, frozenset({"failed"}))
