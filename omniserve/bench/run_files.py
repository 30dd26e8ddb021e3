"""Runs on disk: run.json holds what is known of the whole, requests.jsonl a request a line."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from omniserve.atomic_file import write_parts, write_text
from omniserve.bench.run_record import (
    RequestRecord,
    RunRecord,
    ServerClock,
    StatusSample,
    StreamInfo,
)
from omniserve.errors import OmniServeError

FORMAT = "omniserve-run-1"
RUN_FILE = "run.json"
REQUESTS_FILE = "requests.jsonl"

_encoder = msgspec.json.Encoder()


class RunFileError(OmniServeError):
    """A directory does not hold a run that can be read."""


@dataclass(slots=True)
class _Run:
    """run.json: a RunRecord without its requests."""

    format: str
    title: str
    target: str
    streams: list[StreamInfo]
    duration_s: float
    num_requests: int
    samples: list[StatusSample] = field(default_factory=list)
    server_clock: list[ServerClock] = field(default_factory=list)
    generator_cores: float = 0.0
    num_layers: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def save_run(record: RunRecord, directory: Path) -> None:
    """Writes a run into a directory, which is made where it is missing.

    run.json comes last, so that a directory without it holds no finished run. Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    run = _Run(
        format=FORMAT,
        title=record.title,
        target=record.target,
        streams=record.streams,
        duration_s=record.duration_s,
        num_requests=len(record.requests),
        samples=record.samples,
        server_clock=record.server_clock,
        generator_cores=record.generator_cores,
        num_layers=record.num_layers,
        facts=record.facts,
    )
    (directory / RUN_FILE).unlink(missing_ok=True)
    write_parts(directory / REQUESTS_FILE, (_line(request) for request in record.requests))
    write_text(directory / RUN_FILE, msgspec.json.format(_encoder.encode(run), indent=2).decode())


def load_run(directory: Path) -> RunRecord:
    """Reads what save_run wrote; raises RunFileError, which names the file and the place."""
    path = directory / RUN_FILE
    run = _decode(_read(path), _Run, str(path))
    if run.format != FORMAT:
        raise RunFileError(f"{path}: format: {run.format!r} is not known; allowed: {FORMAT!r}")
    requests_path = directory / REQUESTS_FILE
    requests = list(_requests(requests_path, {stream.name for stream in run.streams}))
    if len(requests) != run.num_requests:
        raise RunFileError(
            f"{requests_path}: holds {len(requests)} requests; {path} tells of {run.num_requests}"
        )
    return RunRecord(
        title=run.title,
        target=run.target,
        streams=run.streams,
        duration_s=run.duration_s,
        requests=requests,
        samples=run.samples,
        server_clock=run.server_clock,
        generator_cores=run.generator_cores,
        num_layers=run.num_layers,
        facts=run.facts,
    )


def _line(request: RequestRecord) -> str:
    return _encoder.encode(request).decode() + "\n"


def _requests(path: Path, streams: Collection[str]) -> Iterator[RequestRecord]:
    decoder = msgspec.json.Decoder(RequestRecord)
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            request = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise RunFileError(f"{path}, line {number}: {error}") from None
        if request.stream not in streams:
            allowed = ", ".join(sorted(streams)) or "none"
            raise RunFileError(
                f"{path}, line {number}: stream: {request.stream!r} is not of the run; "
                f"allowed: {allowed}"
            )
        yield request


def _decode(data: bytes, kind: type[_Run], name: str) -> _Run:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise RunFileError(f"{name}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read: {error.strerror}") from None
