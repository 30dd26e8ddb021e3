"""Reads and writes traces in the formats of others and in our own."""

import io
from pathlib import Path

from omniserve.atomic_file import write_text
from omniserve.bench.trace.formats import apex, azure, burstgpt, mooncake, native
from omniserve.bench.trace.formats.rows import TraceError, first_line
from omniserve.bench.trace.formats.trace_format import TraceFormat
from omniserve.bench.trace.trace import Trace

MAX_DURATION_S = 366 * 86_400
MAX_TOKENS = 1 << 24
"""Of a prompt or an output: beyond what any model takes."""
NATIVE = native.FORMAT.name
FORMATS: dict[str, TraceFormat] = {
    module.FORMAT.name: module.FORMAT for module in (native, azure, burstgpt, mooncake, apex)
}


def read_trace(path: Path, format: str | None = None) -> Trace:
    """The trace of a file, in order of arrival; raises TraceError.

    Without `format`, the first line tells it. A file whose name ends in .gz is unpacked on the way.
    """
    trace = (_recognised(path) if format is None else _named(format)).read(path)
    if not trace.requests:
        raise TraceError(f"{path}: no requests in it")
    _check_sizes(trace, path)
    return trace


def _check_sizes(trace: Trace, path: Path) -> None:
    """One wrong date or length must not take all memory of whoever works with the trace."""
    for number, request in enumerate(trace, start=1):
        for field, value, most in (
            ("arrival_s", request.arrival_s, MAX_DURATION_S),
            ("prompt_tokens", request.prompt_tokens, MAX_TOKENS),
            ("output_tokens", request.output_tokens, MAX_TOKENS),
        ):
            if value > most:
                raise TraceError(
                    f"{path}: request {number} in order of arrival: {field}: {value} is not "
                    f"allowed; allowed: up to {most}"
                )


def write_trace(trace: Trace, path: Path, format: str = NATIVE) -> None:
    """Writes the whole file or nothing; raises TraceError.

    What the format has no place for is left out: `lost_fields` tells what.
    """
    file = io.StringIO()
    _named(format).write(trace, file)
    try:
        write_text(path, file.getvalue())
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error


def lost_fields(trace: Trace, format: str) -> list[str]:
    """Fields with a value in the trace that a file of this format cannot hold."""
    beyond = native.FORMAT.fields - _named(format).fields
    lost = {name for name in beyond if any(getattr(request, name) for request in trace)}
    # Others than ours tell failures by the lack of tokens.
    if format != NATIVE and any(request.failed and request.output_tokens for request in trace):
        lost.add("failed")
    return sorted(lost)


def _recognised(path: Path) -> TraceFormat:
    line = first_line(path)
    for each in FORMATS.values():
        if each.is_first_line(line):
            return each
    if not line.strip():
        raise TraceError(f"{path}: no requests in it")
    known = ", ".join(FORMATS)
    raise TraceError(
        f"{path}: not a trace of a known format ({known}); its first line is {line[:60]!r}, a "
        "trace like Azure's begins with TIMESTAMP,ContextTokens,GeneratedTokens"
    )


def _named(format: str) -> TraceFormat:
    if format not in FORMATS:
        raise TraceError(f"format: {format!r} is not allowed; allowed: {', '.join(FORMATS)}")
    return FORMATS[format]
