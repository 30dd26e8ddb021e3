"""What is wrong with a file of a trace is named with its place."""

import json
from pathlib import Path

import pytest
from trace_files import APEX_ROWS, AZURE_ROWS, BURSTGPT_ROWS, MOONCAKE_ROWS, written

from omniserve.bench.trace.formats.read_write import read_trace, write_trace
from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.samples import sample_trace
from omniserve.errors import ConfigError

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
        (native(arrival_s=1e9), "request 1 in order of arrival: arrival_s: 1000000000.0 is not"),
        (native(prompt_tokens=10**17), "prompt_tokens: 100000000000000000 is not allowed"),
        (f"{NATIVE_HEAD}{'[' * 100_000}\n", "2: not JSON"),
        ("", "no requests in it"),
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
