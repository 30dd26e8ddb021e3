"""Traces are read from every format and written to it; what is wrong is named with its place."""

import gzip
import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.bench.trace.formats import FORMATS, lost_fields, read_trace, write_trace
from omniserve.bench.trace.rows import TraceError
from omniserve.bench.trace.samples import SAMPLES, sample_lengths, sample_trace
from omniserve.bench.trace.trace import Trace, TraceRequest
from omniserve.errors import ConfigError

SAMPLE_FOLDER = Path(__file__).parent.parent / "omniserve" / "bench" / "trace" / "samples"

# The first rows of Azure's code trace of 2023, with the line ends of the original.
AZURE_ROWS = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,3180,8\r\n"
    "2023-11-16 18:17:04.0781490,110,27\r\n"
)
# Made by hand from the documented schema of BurstGPT; the second request failed.
BURSTGPT_ROWS = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,11,4.5,ChatGPT,472,18,490,Conversation log
45,12,,GPT-4,300,0,300,Conversation log
118.25,,2.0,GPT-4,417,276,693,API log
"""
# Made by hand: the columns of BurstGPT's first files.
BURSTGPT_SHORT_ROWS = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
6,ChatGPT,10,0,10,API log
"""
# Made by hand from the documented schema of Mooncake's traces; the last request failed.
MOONCAKE_ROWS = """\
{"timestamp": 27000, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 27000, "input_length": 1530, "output_length": 3, "hash_ids": [0, 1, 9]}
{"timestamp": 30001, "input_length": 20, "output_length": 0, "hash_ids": [7]}
"""
# Made by hand from the documented schema of APEX; the second request failed.
APEX_ROWS = """\
{"StartTimeOffset": 1000, "ContextTokens": 374, "GeneratedTokens": 44}
{"StartTimeOffset": 4314579000, "ContextTokens": 396, "GeneratedTokens": 0}
"""
HAND_MADE = {
    "azure": AZURE_ROWS,
    "burstgpt": BURSTGPT_ROWS,
    "mooncake": MOONCAKE_ROWS,
    "apex": APEX_ROWS,
    "omniserve": '{"omniserve_trace": 1, "name": "mine"}\n'
    '{"arrival_s": 0.5, "prompt_tokens": 7, "output_tokens": 0, "failed": true}\n',
}


def written(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


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
    st.integers(1, 10**9),
    st.integers(1, 10**9),
    texts,
    st.lists(st.integers(-(2**62), 2**62), max_size=4).map(tuple),
    texts,
    texts,
    st.booleans(),
)


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


NATIVE_HEAD = '{"omniserve_trace": 1}\n'
NATIVE_ROW = {"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}


def native(**values: object) -> str:
    return NATIVE_HEAD + json.dumps(NATIVE_ROW | values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AZURE_ROWS.replace("3180", "-3"), "3: ContextTokens: '-3' is not allowed"),
        (AZURE_ROWS.replace("3180", "3.5"), "3: ContextTokens: '3.5' is not allowed"),
        (AZURE_ROWS.replace(",27", ""), "4: GeneratedTokens is missing"),
        (AZURE_ROWS.replace("11-16 18:17:03", "13-16 18:17:03"), "2: TIMESTAMP: '2023-13-16"),
        (AZURE_ROWS.replace("2023-11-16 18:17:03.9799600", "noon"), "2: TIMESTAMP: 'noon'"),
        (BURSTGPT_ROWS.replace("118.25", "nan"), "4: Timestamp: 'nan'"),
        (BURSTGPT_ROWS.replace("118.25", ""), "4: Timestamp is missing"),
        (MOONCAKE_ROWS.replace("[0, 1, 9]", "[0, 1.5]"), "2: hash_ids: [0, 1.5]"),
        (MOONCAKE_ROWS.replace("1530", "true"), "2: input_length: True"),
        (MOONCAKE_ROWS.replace("1530", '"many"'), "2: input_length: 'many'"),
        (MOONCAKE_ROWS.replace("1530", "1e999"), "2: input_length: inf"),
        (MOONCAKE_ROWS.replace("1530", "[1]"), "2: input_length: [1]"),
        (MOONCAKE_ROWS + '{"timestamp": 1', "4: not JSON"),
        (MOONCAKE_ROWS + "[]", "4: a JSON object is expected"),
        (APEX_ROWS.replace("4314579000", "-1"), "2: StartTimeOffset: -1"),
        (
            APEX_ROWS.replace("396", "1" * 100),
            "1" * 60 + "… is not allowed; allowed: a whole number from 0 to 10^18",
        ),
        (NATIVE_HEAD.replace("1", "2"), "1: the first line must be"),
        (NATIVE_HEAD, "no requests in it"),
        (native(prompt_tokens=0), "2: prompt_tokens: 0"),
        (native(output_tokens=0), "2: output_tokens: 0"),
        (native(failed="no"), "2: failed: 'no'"),
        (native(tier=["a"]), "2: tier: ['a']"),
        (native(teir="chat"), "2: teir: no such field"),
        (native(arrival_s=-0.1), "2: arrival_s: -0.1"),
        (native(arrival_s=None), "2: arrival_s is missing"),
        ("", "not a trace of a known format (omniserve, azure, burstgpt, mooncake, apex)"),
        ("TIMESTAMP,ContextTokens\n", "not a trace of a known format"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests in it"),
        ("\x00\x01", "not a trace of a known format"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)
    assert isinstance(caught.value, ConfigError)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="nothing: No such file"):
        read_trace(tmp_path / "nothing")
    binary = tmp_path / "binary"
    binary.write_bytes(b"TIMESTAMP,\xff\xfe")
    with pytest.raises(TraceError, match="not a text file"):
        read_trace(binary)
    with pytest.raises(TraceError, match="not a text file"):
        read_trace(written(tmp_path, AZURE_ROWS, "trace.csv.gz"))
    with pytest.raises(TraceError, match="absent/trace: No such file"):
        write_trace(sample_trace("azure-conv"), tmp_path / "absent" / "trace")
    for call in (
        lambda: read_trace(binary, "csv"),
        lambda: write_trace(sample_trace("azure-conv"), tmp_path / "trace", "csv"),
        lambda: sample_trace("azure"),
    ):
        with pytest.raises(TraceError, match="is not allowed; allowed: "):
            call()


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
