"""Small traces that come with the package; ATTRIBUTION.md beside them says where from."""

from importlib.resources import as_file, files

from omniserve.bench.trace.formats.read_write import read_trace
from omniserve.bench.trace.formats.rows import TraceError, csv_rows
from omniserve.bench.trace.trace import Trace

SAMPLES = ("azure-conv", "azure-code")
"""A few minutes each of the conversation and of the code trace of Azure, 2023."""


def sample_trace(name: str) -> Trace:
    """One of SAMPLES; raises TraceError for another name."""
    if name not in SAMPLES:
        raise TraceError(f"sample: {name!r} is not allowed; allowed: {', '.join(SAMPLES)}")
    with as_file(files(__name__) / f"{name}.csv") as path:
        return read_trace(path, "azure")


def sample_lengths(name: str) -> list[tuple[int, int]]:
    """Prompt and output tokens of requests from all over the trace that a sample is taken from."""
    with as_file(files(__name__) / f"{name}-lengths.csv") as path:
        return [
            (row.whole("ContextTokens"), row.whole("GeneratedTokens")) for row in csv_rows(path)
        ]
