"""OmniServe's own format: JSONL with all that a trace knows.

The first line is {"omniserve_trace": 1, "name": ...}; then one object a request with the fields of
TraceRequest, those at their defaults left out. Times are kept as they are: a trace may begin with
a pause.
"""

import json
from pathlib import Path
from typing import Any, TextIO

from omniserve.bench.trace.formats.rows import Row, TraceError, json_rows
from omniserve.bench.trace.formats.trace_format import TraceFormat
from omniserve.bench.trace.trace import Trace, TraceRequest

_VERSION = 1
_FIELDS = ("session", "prefix_hashes", "tier", "tenant", "failed")

_KEYS = {*_FIELDS, "arrival_s", "prompt_tokens", "output_tokens"}


def _is_first_line(line: str) -> bool:
    return line.startswith("{") and '"omniserve_trace"' in line


def _read(path: Path) -> Trace:
    """Unknown fields are refused: they may be misspelt."""
    rows = json_rows(path)
    header = next(rows, None)
    if header is None or header.values.get("omniserve_trace") != _VERSION:
        raise TraceError(f'{path}:1: the first line must be {{"omniserve_trace": {_VERSION}, …}}')
    return Trace.sorted(header.text("name") or path.stem, [_request(row) for row in rows])


def _write(trace: Trace, file: TextIO) -> None:
    file.write(json.dumps({"omniserve_trace": _VERSION, "name": trace.name}) + "\n")
    for request in trace:
        file.write(json.dumps(_values(request)) + "\n")


def _request(row: Row) -> TraceRequest:
    unknown = sorted(set(row.values) - _KEYS)
    if unknown:
        raise TraceError(f"{row.path}:{row.line}: {unknown[0]}: no such field")
    prompt_tokens, output_tokens = row.whole("prompt_tokens"), row.whole("output_tokens")
    if prompt_tokens == 0:
        raise row.error("prompt_tokens", 0, "a whole number, at least 1")
    failed = row.values.get("failed", False)
    if not isinstance(failed, bool):
        raise row.error("failed", failed, "true or false")
    if output_tokens == 0 and not failed:
        raise row.error("output_tokens", 0, "at least 1 where the request did not fail")
    return TraceRequest(
        row.number("arrival_s"),
        prompt_tokens,
        output_tokens,
        row.text("session"),
        row.whole_numbers("prefix_hashes"),
        row.text("tier"),
        row.text("tenant"),
        failed,
    )


def _values(request: TraceRequest) -> dict[str, Any]:
    values: dict[str, Any] = {
        "arrival_s": request.arrival_s,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
    }
    values |= {name: value for name in _FIELDS if (value := getattr(request, name))}
    return values


FORMAT = TraceFormat("omniserve", _is_first_line, _read, _write, frozenset(_FIELDS))
