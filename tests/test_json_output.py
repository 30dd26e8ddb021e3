"""`--json` of commands that need no daemon: one document on stdout, and nothing else there."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from run_builders import busy_run

from omniserve.bench.report.files import SUMMARY_FILE
from omniserve.bench.run_files import save_run
from omniserve.cli import main
from omniserve.commands.json_output import text_aside


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_of_checkpoints(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = told(capsys, "model", "new", str(tmp_path / "made"), "--preset", "tiny")
    assert made == {"path": str(tmp_path / "made")}
    report = told(capsys, "model", "info", str(tiny_checkpoint))
    assert main(["model", "info", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert f"{report['num_parameters']:,}" in shown and report["architecture"] in shown


def test_of_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.csv"
    size = ("--rate", "5", "--duration-s", "10")
    arguments = ("bench", "trace", "synth", "chat", str(path), *size)
    written = told(capsys, *arguments)
    assert written["path"] == str(path) and written["lost_fields"] == []
    described = told(capsys, "bench", "trace", "describe", str(path))
    assert described["num_requests"] == written["num_requests"] > 0


def test_of_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    sizes = ("--parameters", "8e9", "--layers", "32", "--heads", "32", "--kv-heads", "8")
    profile = told(capsys, "simulate", "roofline", *sizes, "--head-dim", "128", "--out", str(path))
    assert profile == json.loads(path.read_text()) and profile["num_layers"] == 32


def test_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {name: tmp_path / name for name in ("one", "two")}
    for seed, directory in enumerate(runs.values()):
        directory.mkdir()
        save_run(busy_run(seed), directory)
    summary = told(capsys, "bench", "report", str(runs["one"]))
    assert summary == json.loads((runs["one"] / SUMMARY_FILE).read_text())
    compared = told(capsys, "bench", "compare", *map(str, runs.values()))
    assert list(compared) == list(runs) and compared["one"] == summary


def test_what_people_read_goes_aside(capsys: pytest.CaptureFixture[str]) -> None:
    with text_aside(True):
        sys.stdout.write("for people\n")
    with text_aside(False):
        sys.stdout.write("for all\n")
    assert capsys.readouterr() == ("for all\n", "for people\n")
