"""What every format of traces offers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from omniserve.bench.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format of trace files."""

    name: str
    is_first_line: Callable[[str], bool]
    """Whether a file that begins with this line is of the format."""
    read: Callable[[Path], Trace]
    """Raises TraceError."""
    write: Callable[[Trace, TextIO], None]
    fields: frozenset[str]
    """Those of TraceRequest that it can hold, beyond the arrival and the token counts."""
