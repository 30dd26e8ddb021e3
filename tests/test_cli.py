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


WITHOUT_JSON = {
    "omniserve serve",
    "omniserve config schema",
    "omniserve completion",
    "omniserve bench null-server",
}
"""Those that serve, print JSON anyway, or print what only a shell reads."""


def test_every_command_that_prints_prints_json_too() -> None:
    leaves = [each for each in commands(build_parser()) if each.get_default("handler")]
    names = {each.prog for each in leaves if "--json" not in each._option_string_actions}
    assert names == WITHOUT_JSON


def test_no_option_takes_a_token_itself() -> None:
    """Everybody on a machine sees the command lines of all its processes."""
    for parser in commands(build_parser()):
        options = [name for name in parser._option_string_actions if "token" in name]
        kinds = {name: parser._option_string_actions[name].type for name in options}
        assert all(kind is not None for kind in kinds.values()), (parser.prog, kinds)
        assert "--token" not in options


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
        "grpc 127.0.0.1:50051, http 127.0.0.1:8000, status with http, no TLS; "
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
    (tmp_path / "models" / "demo").mkdir(parents=True)
    tenants = f"tenants: [{{name: acme, token_sha256: {'a' * 64}}}]\n"
    path.write_text(DEMO.read_text().replace("127.0.0.1:8000", "0.0.0.0:8000") + tenants)
    owners = {"scheduler": ["omniserve", "scheduler"], "omniserve": ["omniserve"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert main(["config", "check", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "omniserve: warning: listen.http = 0.0.0.0:8000: open to the network and not encrypted, so "
        "that tokens can be read on the way; give tls, or let a proxy on this machine have it",
        "omniserve: warning: the package 'scheduler' is also installed by scheduler; "
        "install omniserve into an environment of its own",
    ]
    assert "; tenants acme; " in captured.out and "status 127.0.0.1:8001, no TLS" in captured.out


def test_check_prints_json_for_right_files_and_wrong_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "this_machine", lambda: Machine(8, 8 << 30, 6 << 30))
    right = tmp_path / "right.yaml"
    right.write_text(DEMO.read_text())
    missing = tmp_path / "models" / "demo"
    warning = (
        f"models[0].path = '{missing}': no such directory; `omniserve serve` would refuse this"
    )
    assert main(["config", "check", str(right), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [f"{warning} here"]
    missing.mkdir(parents=True)
    assert main(["config", "check", str(right), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["ok"], found["warnings"]) == (str(right), True, [])
    assert [tier["class"] for tier in found["tiers"]] == ["latency_sensitive", "best_effort"]
    assert found["listen"]["http"] == "127.0.0.1:8000" and found["models"] == ["demo"]
    path = tmp_path / "wrong.yaml"
    path.write_text("models: 1\ntiers: 2\n")
    assert main(["config", "check", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    said = [line.removeprefix("omniserve: ") for line in captured.err.splitlines()]
    assert json.loads(captured.out) == {"file": str(path), "ok": False, "problems": said}


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
        (["some", "--admin", "\udcff:1"], r"--admin '\udcff:1': must be unix:/path or host:port"),
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
    assert main(["config", "show", str(DEMO), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(shown)


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(schema["properties"]) == set(config.Config.model_fields)


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["serve"], ["config", "check"], ["serve", "a", "--config", "b"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: omniserve" in capsys.readouterr().err


def test_whoever_names_no_command_is_told_which_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, known in (([], "  reload "), (["config"], "  schema ")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == "" and known in captured.err


def test_an_unknown_option_is_answered_with_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, prog in (
        (["chat", "hi", "--maxtokens", "3"], "omniserve chat"),
        (["config", "check", "f", "--jsn"], "omniserve config check"),
        (["--nothing", "config", "schema"], "omniserve"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"usage: {prog} [-h]") and f"{prog}: error: unrec" in said


def test_a_number_out_of_range_is_refused_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["complete", "x", "--temperature", "9"])
    assert capsys.readouterr().err.endswith("'9' is not allowed; allowed: 0 to 2\n")


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
