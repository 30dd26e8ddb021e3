"""The command line: what it prints, where, and with which exit status."""

import argparse
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from omniserve import __version__, config
from omniserve.cli import build_parser, main
from omniserve.config import load_config
from omniserve.machine import Machine

DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all the parsers below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from commands(child)


def test_every_command_explains_itself() -> None:
    for parser in commands(build_parser()):
        assert parser.description, parser.prog
        children = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for action in parser._actions:
            assert action in children or action.help, (parser.prog, action)
        assert children or callable(parser.get_default("handler")), parser.prog


@pytest.mark.parametrize("arguments", [["FILE"], ["--config", "FILE"], ["--config=FILE"]])
def test_check_says_in_one_line_what_is_right(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "this_machine", lambda: Machine(8, 8 << 30, 6 << 30))
    given = [part.replace("FILE", str(DEMO)) for part in arguments]
    assert main(["config", "check", *given]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{DEMO}: OK: models demo; tiers interactive (latency_sensitive), batch (best_effort); "
        "grpc 127.0.0.1:50051, http 127.0.0.1:8000; "
        "piggybacking demo on (2 host threads, 1.5 GiB of host KV)"
    )


def test_check_says_why_a_machine_leaves_piggybacking_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "this_machine", lambda: Machine(1, 8 << 30, 6 << 30))
    assert main(["config", "check", str(DEMO)]) == 0
    reason = "piggybacking demo off (a CPU device needs the one core)"
    assert capsys.readouterr().out.rstrip().endswith(reason)


def test_check_says_on_stderr_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("models: 1\ntiers: 2\n")
    assert main(["config", "check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"omniserve: {path}:1: models = 1: must be a list",
        f"omniserve: {path}:2: tiers = 2: must be a list",
    ]


def test_check_warns_of_open_addresses_and_of_mixed_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "open.yaml"
    path.write_text(DEMO.read_text().replace("127.0.0.1:8000", "0.0.0.0:8000"))
    owners = {"scheduler": ["omniserve", "scheduler"], "omniserve": ["omniserve"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert main(["config", "check", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "omniserve: warning: 0.0.0.0:8000 is open to the network",
        "omniserve: warning: the package 'scheduler' is also installed by scheduler; "
        "install omniserve into an environment of its own",
    ]
    assert "OK" in captured.out


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none.json", "cannot be read: No such file or directory"),
        ("garbage.json", "not a profile: "),
        (".", "cannot be read: Is a directory"),
    ],
)
def test_check_finds_unusable_step_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, problem: str
) -> None:
    (tmp_path / "garbage.json").write_text("{{")
    text = DEMO.read_text()
    config = yaml.safe_load(text)
    config["models"][0]["step_times"] = name
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["config", "check", str(path)]) == 2
    shown = (tmp_path / name).resolve()
    assert capsys.readouterr().err.startswith(
        f"omniserve: models[0].step_times = '{shown}': {problem}"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["\udcff\udcfe"], r"ID '\udcff\udcfe': not UTF-8 text"),
        (["some", "--address", "\udcff:1"], r"--address '\udcff:1': not UTF-8 text"),
        ([""], "ID: must not be empty"),
    ],
)
def test_explain_says_what_cannot_be_asked(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["explain", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"omniserve: {said}")


def test_show_prints_a_file_of_the_same_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", str(DEMO)]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["daemon"]["shutdown_grace_s"] == 30
    assert {tier["class"]: "admission" in tier for tier in yaml.safe_load(shown)["tiers"]} == {
        "latency_sensitive": True,
        "best_effort": False,
    }
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert load_config(again) == load_config(DEMO)


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(schema["properties"]) == {"listen", "device", "models", "tiers", "daemon"}


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["serve"], ["config", "check"], ["serve", "a", "--config", "b"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: omniserve" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"omniserve {__version__}\n"


def test_the_front_never_imports_what_only_the_engine_needs() -> None:
    code = (
        "import sys\n"
        "import omniserve.cli, omniserve.daemon, omniserve.front\n"
        "omniserve.cli.build_parser()\n"
        "print([name for name in ('torch', 'transformers', 'numba') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
