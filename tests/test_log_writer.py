"""Logs on pipes that somebody reads in time, late or never."""

import logging
import os
from collections.abc import Iterator

import pytest

from omniserve import log_writer
from omniserve.log_writer import LogWriter
from omniserve.logs import LogSettings, make_formatter

LINE = "x" * 99
NUM_LINES = 25
MAX_WAITING_BYTES = 1000


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a writer that is slow, and not for ever."""
    monkeypatch.setattr(log_writer, "FLUSH_S", 60.0)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


def fill(writing: int) -> int:
    """How many bytes went into the pipe until it was full."""
    os.set_blocking(writing, False)
    num_bytes = 0
    try:
        while True:
            num_bytes += os.write(writing, b"-")
    except BlockingIOError:
        os.set_blocking(writing, True)
        return num_bytes


def read(reading: int, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        data += os.read(reading, num_bytes - len(data))
    return data


def write(writer: LogWriter, *lines: str) -> None:
    for line in lines:
        writer.handle(logging.makeLogRecord({"name": "test", "levelname": "INFO", "msg": line}))


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, logging.Formatter())
    lines = [f"line {number}" for number in range(500)]
    write(writer, *lines)
    writer.flush()
    assert os.read(reading, 1 << 16).decode().splitlines() == lines


def test_what_is_too_much_is_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    num_bytes = fill(writing)
    writer = LogWriter(writing, make_formatter(LogSettings()), MAX_WAITING_BYTES)
    write(writer, *[LINE] * NUM_LINES)
    assert read(reading, num_bytes) == b"-" * num_bytes
    writer.flush()
    write(writer, "later")
    writer.flush()
    written = os.read(reading, 1 << 16).decode().splitlines()
    shown = [line.split(" ", 2)[1:] for line in written]
    kept = shown[:-2]
    assert 0 < len(kept) < NUM_LINES
    assert kept == [["info", f"{LINE} logger=test"]] * len(kept)
    assert shown[-2:] == [
        ["warning", f"log_lines_dropped num={NUM_LINES - len(kept)}"],
        ["info", "later logger=test"],
    ]


def test_a_line_longer_than_all_that_may_wait_is_written(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, logging.Formatter(), max_waiting_bytes=10)
    write(writer, LINE)
    writer.flush()
    assert os.read(reading, 1 << 16).decode() == f"{LINE}\n"


def test_the_end_waits_for_no_reader_who_never_comes(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe
    monkeypatch.setattr(log_writer, "FLUSH_S", 0.05)
    num_bytes = fill(writing)
    writer = LogWriter(writing, logging.Formatter())
    write(writer, "first", "second")
    writer.flush()
    writer.flush()
    # Its thread goes on as long as the process does.
    assert read(reading, num_bytes + 13).endswith(b"-first\nsecond\n")


def test_a_log_that_cannot_be_written_is_left() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(descriptor, logging.Formatter())
    write(writer, *["lost"] * 10)
    writer.flush()
    os.close(descriptor)
