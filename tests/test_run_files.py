"""Runs on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from omniserve.bench.run_files import (
    REQUESTS_FILE,
    RUN_FILE,
    RunFileError,
    load_run,
    save_run,
)
from omniserve.bench.run_record import (
    RequestRecord,
    RunRecord,
    ServerClock,
    StatusSample,
    StreamInfo,
)

DONE = RequestRecord("chat", 0, 0.5, 10, 3, 0.501, [0.6, 0.7, 0.7], 0.71, "done")
REFUSED = RequestRecord("chat", 1, 1.5, 10, 3, 1.501, [], 1.502, "rejected", "HTTP 429: a ß \u2028")
CUT_OFF = RequestRecord("batch", 0, -1.0, 10, 3)
RECORD = RunRecord(
    title="by hand",
    target="nothing 1.0",
    streams=[
        StreamInfo("chat", "latency_sensitive", "demo", "interactive", 500, 100),
        StreamInfo("batch", "best_effort", "demo", is_open_loop=False),
    ],
    duration_s=12.5,
    requests=[DONE, REFUSED, CUT_OFF],
    samples=[StatusSample(0.25, 1, 2, 3, 4, 5, 6, 7, 8, 9)],
    server_clock=[ServerClock("chat", 3, 1.5, None, 2.5)],
    generator_cores=0.25,
    num_layers=4,
    facts={"seed": 1, "notes": ["one", "two"]},
)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_run(RECORD, tmp_path / "new" / "run")
    assert load_run(tmp_path / "new" / "run") == RECORD


def test_a_second_run_takes_the_place_of_the_first(tmp_path: Path) -> None:
    save_run(RECORD, tmp_path)
    second = replace(RECORD, title="second", requests=[DONE])
    save_run(second, tmp_path)
    assert load_run(tmp_path) == second
    assert {path.name for path in tmp_path.iterdir()} == {RUN_FILE, REQUESTS_FILE}


def test_a_run_that_breaks_off_while_it_is_written_is_none(tmp_path: Path) -> None:
    save_run(RECORD, tmp_path)
    with pytest.raises(TypeError):
        save_run(replace(RECORD, facts={"not JSON": object()}), tmp_path)
    with pytest.raises(RunFileError, match=RUN_FILE):
        load_run(tmp_path)


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run\.json: cannot be read: No such file"):
        load_run(tmp_path / "nowhere")


def test_a_request_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    save_run(RECORD, tmp_path)
    path = tmp_path / REQUESTS_FILE
    path.write_text(path.read_text().replace('"rejected"', '"lost"'))
    with pytest.raises(RunFileError, match=r"requests\.jsonl, line 2: .*lost.*outcome"):
        load_run(tmp_path)


def test_a_request_of_no_stream_is_named(tmp_path: Path) -> None:
    save_run(replace(RECORD, streams=RECORD.streams[:1]), tmp_path)
    with pytest.raises(RunFileError, match=r"line 3: stream: 'batch' is not .*; allowed: chat"):
        load_run(tmp_path)


def test_requests_that_are_missing_are_noticed(tmp_path: Path) -> None:
    save_run(RECORD, tmp_path)
    path = tmp_path / REQUESTS_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(RunFileError, match=r"holds 2 requests; .* tells of 3"):
        load_run(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other"}', "[1]"])
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    save_run(RECORD, tmp_path)
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(RunFileError, match=r"run\.json"):
        load_run(tmp_path)


def test_a_run_of_a_later_format_is_refused(tmp_path: Path) -> None:
    save_run(RECORD, tmp_path)
    path = tmp_path / RUN_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "omniserve-run-9"}))
    with pytest.raises(RunFileError, match="format: 'omniserve-run-9' is not known"):
        load_run(tmp_path)
