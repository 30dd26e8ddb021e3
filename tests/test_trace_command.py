"""`omniserve bench trace` from its arguments to what it writes."""

import argparse
import json
from pathlib import Path

import pytest

from omniserve.bench.trace.command import add_trace_commands
from omniserve.bench.trace.formats.read_write import FORMATS, read_trace, write_trace
from omniserve.bench.trace.formats.rows import TraceError
from omniserve.bench.trace.samples import SAMPLES, sample_trace
from omniserve.bench.trace.synth.recipes import RECIPES
from omniserve.bench.trace.trace import Trace, TraceRequest


def run(*arguments: object) -> int:
    """The exit status; what the command line turns into one is raised."""
    parser = argparse.ArgumentParser(prog="omniserve bench")
    add_trace_commands(parser.add_subparsers(required=True))
    args = parser.parse_args(["trace", *map(str, arguments)])
    status: int = args.handler(args)
    return status


def test_every_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("describe", "--list") == 0
    listed = capsys.readouterr().out
    for name in (*SAMPLES, *RECIPES, *FORMATS):
        assert name in listed
    assert "CC-BY 4.0" in listed


def test_a_trace_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert run("describe", "sample:azure-code", "--plot", page) == 0
    captured = capsys.readouterr()
    assert "1,985" in captured.out
    assert captured.err == f"wrote {page}\n"
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_descriptions_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("describe", "sample:azure-code", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_requests"] == 1985
    assert run("describe", "sample:azure-code", "sample:azure-conv", "--json") == 0
    both = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in both] == ["sample:azure-code", "sample:azure-conv"]


@pytest.mark.parametrize("traces", [[], ["sample:azure-code"] * 9])
def test_none_and_too_many_traces_are_refused(traces: list[str]) -> None:
    with pytest.raises(TraceError, match="give 1 to 8 traces, or --list"):
        run("describe", *traces)


def test_a_part_is_cut_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    requests = [
        TraceRequest(k, 1 + k, k % 5, tier="ab"[k % 2], tenant="cd"[k < 8], failed=k % 5 == 0)
        for k in range(12)
    ]
    write_trace(Trace.sorted("t", requests), source)
    options = ("--start-s", 3, "--end-s", 11, "--tier", "a", "--tenant", "d", "--without-failed")
    assert run("slice", source, output, *options) == 0
    assert [each.prompt_tokens - 1 for each in read_trace(output)] == [4, 6]
    assert read_trace(output).requests[0].arrival_s == 1
    assert capsys.readouterr().out == f"wrote {output}: 2 requests, 3.0 s\n"


def test_a_trace_is_scaled(tmp_path: Path) -> None:
    output = tmp_path / "output"
    options = ("--rate", 2, "--lengths", 0.5, "--max-prompt-tokens", 100)
    limits = ("--max-output-tokens", 9, "--spread-ticks")
    assert run("scale", "sample:azure-conv", output, *options, *limits) == 0
    before, after = sample_trace("azure-conv"), read_trace(output)
    assert after.duration_s == before.duration_s / 2
    assert max(each.prompt_tokens for each in after) == 100
    assert max(each.output_tokens for each in after) == 9


def test_a_trace_is_made(tmp_path: Path) -> None:
    output = tmp_path / "output"
    options = ("--rate", 5, "--duration-s", 40, "--failed-share", 0.5, "--tenants", 2)
    assert run("synth", "chat", output, *options, "--tier", "gold", "--seed", 7) == 0
    trace = read_trace(output)
    assert len(trace) == 200
    assert {each.tier for each in trace} == {"gold"}
    assert {each.tenant for each in trace} == {"tenant-1", "tenant-2"}
    assert 50 < sum(each.failed for each in trace) < 150


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        assert run("synth", "api", tmp_path / name, "--num-requests", 50, "--seed", seed) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "same").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


def test_a_trace_is_imitated(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert run("synth", "like:sample:azure-code", output, "--num-requests", 300) == 0
    assert len(read_trace(output)) == 300
    assert run("describe", f"synth:like:{output}") == 0


def test_what_a_format_has_no_place_for_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert run("convert", "sample:azure-code", output, "--to", "mooncake", "--tier", "gold") == 0
    assert capsys.readouterr().err == "omniserve: mooncake has no place for tier\n"
    assert run("describe", output, "--format", "mooncake") == 0
    assert len(read_trace(output, "mooncake")) == 1985


@pytest.mark.parametrize(
    "arguments",
    [
        ("scale", "a", "b", "--rate", "nan"),
        ("scale", "a", "b", "--max-prompt-tokens", "0"),
        ("slice", "a", "b", "--start-s", "-1"),
        ("synth", "chat", "b", "--failed-share", "1.1"),
        ("synth", "chat", "b", "--seed", "-1"),
        ("synth", "chat", "b", "--tenants", "0"),
        ("synth", "chat", "b", "--rate", "0"),
        ("convert", "a", "b", "--to", "parquet"),
        ("describe", "a", "--format", "csv"),
    ],
)
def test_wrong_values_are_usage_errors(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[-2]}: " in capsys.readouterr().err
