"""Rows of trace files: named values, each with the place that a message about it has to tell."""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from omniserve.errors import ConfigError

_MAX_SHOWN = 60
_MAX_FIRST_LINE = 1 << 20
_MAX_WHOLE = 10**18


class TraceError(ConfigError):
    """A trace cannot be used; the message names the file and, where there is one, the line."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file; all readers of values raise TraceError."""

    path: Path
    line: int
    """From 1."""
    values: Mapping[str, Any]

    def whole(self, field: str) -> int:
        """A whole number from 0 to 10^18; it may be written as 18.0, as some tools do."""
        value = self.present(field)
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = self.number(field)
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if type(number) is not int or not 0 <= number <= _MAX_WHOLE:
            raise self.error(field, value, "a whole number from 0 to 10^18")
        return number

    def number(self, field: str) -> float:
        """A finite number, at least 0."""
        value = self.present(field)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, TypeError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise self.error(field, value, "a number, at least 0")
        return number

    def text(self, field: str) -> str:
        """Empty where the row has none."""
        value = self.values.get(field)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(field, value, "a text")
        return str(value)

    def whole_numbers(self, field: str) -> tuple[int, ...]:
        """A list of whole numbers, of any sign; empty where the row has none."""
        values = self.values.get(field, [])
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise self.error(field, values, "a list of whole numbers")
        return tuple(values)

    def present(self, field: str) -> Any:
        """The value as it was read."""
        value = self.values.get(field)
        if value is None or value == "":
            raise TraceError(f"{self.path}:{self.line}: {field} is missing")
        return value

    def error(self, field: str, value: object, allowed: str) -> TraceError:
        shown = repr(value)
        if len(shown) > _MAX_SHOWN:
            shown = f"{shown[:_MAX_SHOWN]}…"
        return TraceError(
            f"{self.path}:{self.line}: {field}: {shown} is not allowed; allowed: {allowed}"
        )


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a file whose first line names the columns; empty lines are skipped."""
    with _open_text(path) as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        try:
            for values in reader:
                yield Row(path, reader.line_num, values)
        except csv.Error as error:
            raise TraceError(f"{path}:{reader.line_num}: {error}") from error


def json_rows(path: Path) -> Iterator[Row]:
    """One JSON object a line; empty lines are skipped."""
    with _open_text(path) as file:
        for line, text in enumerate(file, start=1):
            if text.isspace():
                continue
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise TraceError(f"{path}:{line}: not JSON: {error}") from error
            if not isinstance(values, dict):
                raise TraceError(f"{path}:{line}: a JSON object is expected")
            yield Row(path, line, values)


def first_line(path: Path) -> str:
    """The first line that is not empty, stripped; "" of a file without one."""
    with _open_text(path) as file:
        # Of a line without an end, or a file that is nothing but one, the beginning tells enough.
        while line := file.readline(_MAX_FIRST_LINE):
            if not line.isspace():
                return line.strip()
    return ""


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """The file, unpacked where its name ends in .gz; TraceError where it cannot be read."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (UnicodeDecodeError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise TraceError(f"{path}: not a text file: {error}") from error
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
