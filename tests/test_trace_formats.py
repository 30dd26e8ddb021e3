"""Traces are read from every format and written to it."""

import gzip
import math
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_files import (
    APEX_ROWS,
    AZURE_ROWS,
    BURSTGPT_ROWS,
    BURSTGPT_SHORT_ROWS,
    HAND_MADE,
    MOONCAKE_ROWS,
    written,
)

from omniserve.bench.trace.formats.read_write import (
    FORMATS,
    MAX_TOKENS,
    lost_fields,
    read_trace,
    write_trace,
)
from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.samples import SAMPLES, sample_lengths, sample_trace
from omniserve.bench.trace.trace import Trace, TraceRequest

SAMPLE_FOLDER = Path(__file__).parent.parent / "omniserve" / "bench" / "trace" / "samples"


def read(folder: Path, text: str) -> tuple[TraceRequest, ...]:
    return read_trace(written(folder, text)).requests


def test_azure_rows(tmp_path: Path) -> None:
    assert read(tmp_path, AZURE_ROWS) == (
        TraceRequest(0.0, 4808, 10),
        TraceRequest(0.052, 3180, 8),
        TraceRequest(0.098189, 110, 27),
    )


def test_azure_rows_of_later_years(tmp_path: Path) -> None:
    """2024 has offsets and fewer digits, 2025 has another column; rows need not be in order."""
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens,NumImages\n"
        "2024-05-10 00:00:01.009930+00:00,20,0,1\n"
        "2024-05-10 01:00:00+01:00,10,5,0\n"
    )
    assert read(tmp_path, text) == (
        TraceRequest(0.0, 10, 5),
        TraceRequest(1.00993, 20, 0, failed=True),
    )


def test_burstgpt_rows(tmp_path: Path) -> None:
    first, second, third = read(tmp_path, BURSTGPT_ROWS)
    assert first == TraceRequest(
        0.0, 472, 18, session="11", tenant="ChatGPT/Conversation log", failed=False
    )
    assert (second.arrival_s, second.output_tokens, second.failed) == (40.0, 0, True)
    assert third == TraceRequest(113.25, 417, 276, tenant="GPT-4/API log")


def test_burstgpt_rows_without_sessions(tmp_path: Path) -> None:
    first, second = read(tmp_path, BURSTGPT_SHORT_ROWS)
    assert (first.session, first.tenant) == ("", "ChatGPT/Conversation log")
    assert second == TraceRequest(1.0, 10, 0, tenant="ChatGPT/API log", failed=True)


def test_burstgpt_keeps_other_tenants(tmp_path: Path) -> None:
    trace = Trace("t", tuple(TraceRequest(0.0, 1, 1, tenant=each) for each in ("acme", "a/b")))
    write_trace(trace, tmp_path / "copy", "burstgpt")
    assert read_trace(tmp_path / "copy").requests == trace.requests


def test_mooncake_rows(tmp_path: Path) -> None:
    assert read(tmp_path, MOONCAKE_ROWS) == (
        TraceRequest(0.0, 1100, 500, prefix_hashes=(0, 1, 2)),
        TraceRequest(0.0, 1530, 3, prefix_hashes=(0, 1, 9)),
        TraceRequest(3.001, 20, 0, prefix_hashes=(7,), failed=True),
    )


def test_apex_rows(tmp_path: Path) -> None:
    assert read(tmp_path, APEX_ROWS) == (
        TraceRequest(0.0, 374, 44),
        TraceRequest(4.314578, 396, 0, failed=True),
    )


def test_an_empty_prompt_gets_a_token(tmp_path: Path) -> None:
    """Nothing could be replayed of it otherwise."""
    assert read(tmp_path, APEX_ROWS.replace("374", "0"))[0].prompt_tokens == 1


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_read_is_read_again(format: str, tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, HAND_MADE[format]))
    again = tmp_path / "again"
    write_trace(trace, again, format)
    assert read_trace(again).requests == trace.requests
    assert lost_fields(trace, format) == []


@pytest.mark.parametrize("sample", SAMPLES)
def test_times_of_real_rows_are_exact(sample: str) -> None:
    """Against decimal arithmetic on the text: real rows are told to 100 ns."""
    rows = (SAMPLE_FOLDER / f"{sample}.csv").read_text().splitlines()[1:]

    def seconds(row: str) -> Decimal:
        hours, minutes, rest = row.split(",")[0].partition(" ")[2].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Decimal(rest)

    trace = sample_trace(sample)
    assert len(trace) == len(rows) > 1900
    for row, request in zip(rows, trace, strict=True):
        _, prompt_tokens, output_tokens = row.split(",")
        assert request.arrival_s == float(seconds(row) - seconds(rows[0]))
        assert (request.prompt_tokens, request.output_tokens) == (
            int(prompt_tokens),
            int(output_tokens),
        )


@pytest.mark.parametrize("format", FORMATS)
def test_real_rows_round_trip(format: str, tmp_path: Path) -> None:
    trace = sample_trace("azure-conv")
    write_trace(trace, tmp_path / "copy", format)
    again = read_trace(tmp_path / "copy")
    assert [(each.arrival_s, each.prompt_tokens, each.output_tokens) for each in again] == [
        (each.arrival_s, each.prompt_tokens, each.output_tokens) for each in trace
    ]


def test_the_azure_writer_repeats_the_rows(tmp_path: Path) -> None:
    """Token counts as they were, times from the epoch of the writer on."""
    write_trace(sample_trace("azure-code"), tmp_path / "copy", "azure")
    lines = (tmp_path / "copy").read_text().splitlines()
    original = (SAMPLE_FOLDER / "azure-code.csv").read_text().splitlines()
    assert lines[0] == original[0]
    assert lines[1] == "2000-01-01 00:00:00.0000000,5991,16"
    assert [line.split(",")[1:] for line in lines] == [line.split(",")[1:] for line in original]


def test_pairs_of_lengths_are_those_of_the_whole_trace() -> None:
    """Means of the full traces of 2023: 2,048 and 27.9 tokens of code, 1,155 and 211 of
    conversations."""
    for name, prompt, output in (("azure-code", 2048, 27.9), ("azure-conv", 1155, 211)):
        pairs = sample_lengths(name)
        assert len(pairs) == 2000
        assert sum(pair[0] for pair in pairs) / 2000 == pytest.approx(prompt, rel=0.01)
        assert sum(pair[1] for pair in pairs) / 2000 == pytest.approx(output, rel=0.03)


texts = st.text(max_size=8)
requests = st.builds(
    TraceRequest,
    st.floats(0, 1e7, allow_nan=False),
    st.integers(1, MAX_TOKENS),
    st.integers(1, MAX_TOKENS),
    texts,
    st.lists(st.integers(-(2**62), 2**62), max_size=4).map(tuple),
    texts,
    texts,
    st.booleans(),
)


@settings(deadline=None)
@given(st.lists(requests, min_size=1, max_size=8), texts.filter(bool))
def test_our_format_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory, made: list[TraceRequest], name: str
) -> None:
    trace = Trace.sorted(name, made)
    path = tmp_path_factory.getbasetemp() / "everything"
    write_trace(trace, path)
    assert read_trace(path) == trace


def test_what_a_format_cannot_hold_is_told() -> None:
    trace = Trace("full", (TraceRequest(0, 1, 0, "s", (1,), "chat", "acme", True),))
    assert lost_fields(trace, "omniserve") == []
    assert lost_fields(trace, "azure") == ["prefix_hashes", "session", "tenant", "tier"]
    assert lost_fields(trace, "burstgpt") == ["prefix_hashes", "tier"]
    assert lost_fields(trace, "mooncake") == ["session", "tenant", "tier"]


def test_a_failure_amid_the_answer_is_lost_elsewhere() -> None:
    trace = Trace("broken", (TraceRequest(0, 1, 5, failed=True),))
    assert lost_fields(trace, "omniserve") == []
    assert lost_fields(trace, "azure") == ["failed"]


def test_marks_and_empty_lines_and_compression_are_passed_over(tmp_path: Path) -> None:
    text = "\ufeff" + AZURE_ROWS.replace("\r\n", "\r\n\r\n")
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_trace(path).requests == read(tmp_path, AZURE_ROWS)
    assert read(tmp_path, "\n\n" + MOONCAKE_ROWS + "\n") == read(tmp_path, MOONCAKE_ROWS)


def test_numbers_may_be_written_as_fractions(tmp_path: Path) -> None:
    assert read(tmp_path, AZURE_ROWS.replace(",4808,10", ", 4808.0,10.0"))[0] == TraceRequest(
        0.0, 4808, 10
    )


def test_a_format_may_be_told(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE_ROWS)
    assert read_trace(path, "azure") == read_trace(path)
    with pytest.raises(TraceError, match="2: Timestamp is missing"):
        read_trace(path, "burstgpt")


def test_times_beyond_a_day_keep_their_digits(tmp_path: Path) -> None:
    trace = Trace("long", (TraceRequest(0, 1, 1), TraceRequest(600_000.0000001, 1, 1)))
    write_trace(trace, tmp_path / "azure", "azure")
    again = read_trace(tmp_path / "azure")
    assert math.isclose(again.duration_s, 600_000.0000001, abs_tol=1e-9)
