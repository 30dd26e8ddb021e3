"""Commands that use a daemon, as real processes: what they print and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_process import PATIENCE_S, ROOT, run_command
from daemon_fixture import RunningDaemon
from fault_daemon import FaultDaemon, fault_daemon, write_patient_config

GREEDY = ("--temperature", "0", "--max-tokens", "8", "--ignore-eos")


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Taken, and nobody listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_what_is_served(daemon: RunningDaemon) -> None:
    address = daemon.grpc_address
    models = run_command("models", OMNISERVE_ADDRESS=address)
    assert (models.returncode, models.stderr) == (0, "")
    head, _, row = models.stdout.splitlines()[-3:]
    assert head.split()[0] == "model" and row.split()[0] == "demo" and "interactive" in row
    (model,) = json.loads(run_command("models", "--json", OMNISERVE_ADDRESS=address).stdout)[
        "models"
    ]
    assert model["name"] == "demo" and model["default_tier"] == "interactive"
    assert f"{model['num_parameters']:,}" in row and model["max_model_len"] > 0

    tiers = run_command("tiers", OMNISERVE_ADDRESS=address)
    first, second = (line.split() for line in tiers.stdout.splitlines()[-2:])
    assert first[:6] == ["interactive", "latency-sensitive", "2000", "500", "99", "%"]
    assert second[:4] == ["batch", "best-effort", "-", "-"]
    listed = json.loads(run_command("tiers", "--json", OMNISERVE_ADDRESS=address).stdout)["tiers"]
    assert [(tier["name"], tier["ttft_ms"]) for tier in listed] == [
        ("interactive", 2000),
        ("batch", None),
    ]


def test_the_status(daemon: RunningDaemon) -> None:
    admin = daemon.admin_target
    shown = run_command("status", "--admin", admin)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("ready: OmniServe ") and "Models" in shown.stdout
    status = json.loads(run_command("status", "--json", OMNISERVE_ADMIN=admin).stdout)
    assert status["state"] == "ready" and status["models"][0]["name"] == "demo"
    assert isinstance(status["models"][0]["kv_total_bytes"], int)


def test_what_models_share(daemon: RunningDaemon) -> None:
    admin = daemon.admin_target
    shown = run_command("models", "--sharing", "--admin", admin)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "MiB are in memory" in shown.stdout.splitlines()[-1]
    told = json.loads(run_command("models", "--sharing", "--json", OMNISERVE_ADMIN=admin).stdout)
    (model,) = told["models"]
    assert model["name"] == "demo" and model["shared_bytes"] == 0
    assert told["resident_bytes"] == told["held_bytes"] == model["own_bytes"] > 1000


def test_a_completion_by_argument_pipe_and_as_json(daemon: RunningDaemon) -> None:
    given = ("--address", daemon.grpc_address, *GREEDY)
    plain = run_command("complete", "Once upon a time", *given)
    assert (plain.returncode, plain.stderr) == (0, "") and plain.stdout.endswith("\n")
    piped = run_command("complete", *given, "--figures", text=b"Once upon a time\n")
    assert piped.stdout == plain.stdout
    assert "8 tokens" in piped.stderr and "ended by length" in piped.stderr
    told = run_command(
        *("complete", "Once upon a time", *given),
        *("--json", "--tier", "batch", "--request-id", "told-1"),
    )
    answer = json.loads(told.stdout)
    assert plain.stdout in (answer["text"], answer["text"] + "\n")
    assert (answer["request_id"], answer["tier"], answer["model"]) == ("told-1", "batch", "demo")
    assert answer["finish_reason"] == "length" and answer["usage"]["output_tokens"] == 8
    assert 0 < answer["ttft_ms"] <= answer["total_ms"]


def test_a_stop_string_ends_a_completion(daemon: RunningDaemon) -> None:
    given = ("--address", daemon.grpc_address, *GREEDY, "--json")
    text = json.loads(run_command("complete", "Once", *given).stdout)["text"]
    stop = text[len(text) // 2 :][:3]
    cut = json.loads(run_command("complete", "Once", *given, "--stop", stop).stdout)
    assert cut["text"] == text[: text.index(stop)]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize(
    ("arguments", "text", "status", "said"),
    [
        (["complete", "x", "--tier", "gold"], b"", 2, "gold"),
        (["complete", "x", "--top-p", "0"], b"", 2, "top_p: 0.0 is not allowed"),
        (["complete", "x", "--model", "other"], b"", 1, "other"),
        (["chat"], b"", 2, "standard input: '' asks nothing"),
        (["chat"], b"\n\n", 2, "standard input: '\\n' asks nothing"),
        (["chat", " "], b"", 2, "MESSAGE: ' ' asks nothing"),
        (["complete"], b"\xff\xfe", 2, "standard input: not UTF-8 text at byte 0"),
        (["complete", b"\xff"], b"", 2, "not UTF-8 text"),
        (["complete", "x", "--temperature", "nan"], b"", 2, "allowed: 0 to 2"),
        (["complete", "x", "--max-tokens", "0"], b"", 2, "a whole number from 1"),
        (["chat", "x", "--token-file", "/nowhere/token"], b"", 2, "/nowhere/token: cannot be read"),
        (["models", "--ca", "/dev/null"], b"", 2, "--ca /dev/null: cannot be read"),
        (["models", "--cert", "/dev/null"], b"", 2, "--cert and --key"),
    ],
)
def test_what_is_not_right(
    daemon: RunningDaemon, arguments: list[str | bytes], text: bytes, status: int, said: str
) -> None:
    done = run_command(*arguments, text=text, OMNISERVE_ADDRESS=daemon.grpc_address)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


@pytest.mark.parametrize("arguments", [["models"], ["complete", "x"], ["chat", "x", "--json"]])
def test_nobody_answers(silent_address: str, arguments: list[str]) -> None:
    done = run_command(*arguments, "--address", silent_address)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"omniserve: {silent_address} does not answer: gRPC UNAVAILABLE")


def test_no_daemon_to_be_found(tmp_path: Path, silent_address: str) -> None:
    tmp_path.chmod(0o700)
    missing = f"unix:{tmp_path}/none.sock"
    for command in (["status"], ["reload"], ["explain", "some"]):
        done = run_command(*command, "--admin", missing)
        assert (done.returncode, done.stdout) == (3, ""), command
        assert "does not answer" in done.stderr
    wrong = run_command("status", "--admin", "nowhere")
    assert wrong.returncode == 2 and "--admin 'nowhere': must be" in wrong.stderr


def test_the_public_address_is_not_the_admin_address(daemon: RunningDaemon) -> None:
    done = run_command("status", "--admin", daemon.grpc_address)
    assert done.returncode == 1 and "is it the right address?" in done.stderr


def test_a_reader_that_goes_away_and_ctrl_c_end_the_request(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = write_patient_config(tmp_path, tiny_checkpoint)
    # The answer is as long as the prompt, and takes minutes.
    with fault_daemon(config, "--token-s", "0.05") as daemon:
        check_ends(daemon, 2000 * "Once upon a time. ")


def check_ends(daemon: FaultDaemon, prompt: str) -> None:
    command = [sys.executable, "-m", "omniserve", "complete", prompt]
    command += ["--address", daemon.grpc_address, "--request-id"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ends = {}
    for name in ("gone", "interrupted"):
        process = subprocess.Popen(
            [*command, f"end-{name}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        if name == "interrupted":
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        process.stdout.close()
        said = process.stderr.read()
        process.stderr.close()
        ends[name] = process.wait(timeout=PATIENCE_S), said
    assert ends == {"gone": (141, b""), "interrupted": (130, b"")}
    for name in ends:
        told = run_command("explain", f"end-{name}", "--admin", daemon.admin, "--json")
        timeline = json.loads(told.stdout)["timeline"]
        assert [each["reason"] for each in timeline if each["event"] == "ended"] == ["cancelled"]
