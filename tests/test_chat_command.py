"""`omniserve chat`, by pipes and at a keyboard, with a real daemon."""

import json
import stat
from pathlib import Path

from command_process import TerminalCommand, run_command
from daemon_fixture import RunningDaemon
from fault_daemon import FaultDaemon, fault_daemon, write_patient_config

GREEDY = ("--temperature", "0", "--max-tokens", "8", "--ignore-eos")


def test_a_message_is_answered_once(daemon: RunningDaemon) -> None:
    given = ("--address", daemon.grpc_address, *GREEDY)
    by_argument = run_command("chat", "Hello there", *given)
    by_pipe = run_command("chat", *given, text=b"Hello there\n")
    assert (by_argument.returncode, by_argument.stderr) == (0, "")
    assert by_argument.stdout.strip() and by_argument.stdout == by_pipe.stdout
    # A chat is more than its question: a template is around it.
    completed = run_command("complete", "Hello there", *given)
    assert completed.returncode == 0 and completed.stdout != by_argument.stdout
    told = run_command("chat", "Hello there", "--system", "Be brief.", "--json", *given)
    answer, plain = json.loads(told.stdout), run_command("chat", "Hello there", "--json", *given)
    more = answer["usage"]["prompt_tokens"] - json.loads(plain.stdout)["usage"]["prompt_tokens"]
    assert more > 0 and answer["usage"]["output_tokens"] == 8


def test_a_talk_in_a_terminal(daemon: RunningDaemon, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    state = str(tmp_path / "state")
    with TerminalCommand(
        "chat", "--address", daemon.grpc_address, *GREEDY, XDG_STATE_HOME=state
    ) as chat:
        assert "demo at" in chat.wait_for("> ")
        chat.type("Hello there\n")
        said = chat.wait_for(r"ended by length, request \S+.*> ")
        assert "8 tokens" in said and "tier interactive" in said
        chat.type("/tier batch\n")
        assert "* batch" in chat.wait_for("> ")
        chat.type("And\\\nthen?\n")
        assert "tier batch" in chat.wait_for(r"ended by length.*> ")
        chat.type(f"/save {saved}\n")
        chat.wait_for("written: .*> ")
        messages = json.loads(saved.read_text())["messages"]
        assert [each["role"] for each in messages] == ["user", "assistant"] * 2
        assert [each["content"] for each in messages[::2]] == ["Hello there", "And\nthen?"]
        chat.type("/undo\n")
        assert "forgotten: And" in chat.wait_for("> ")
        chat.type("/retry\n")
        chat.wait_for("ended by length.*> ")
        chat.type(f"/save {saved}\n")
        chat.wait_for("written: .*> ")
        again = json.loads(saved.read_text())["messages"]
        assert len(again) == 2 and again[1] == messages[1]
        chat.type("\x04")
        assert chat.wait_end() == 0
    (history,) = (tmp_path / "state").rglob("chat_history")
    assert "Hello there" in history.read_text().splitlines()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with TerminalCommand("chat", "--address", daemon.grpc_address, XDG_STATE_HOME=state) as chat:
        chat.wait_for("> ")
        # Arrow up, to the last line of the time before.
        chat.type("\x1b[A")
        chat.wait_for(str(saved))
        chat.type("\x15/quit\n")
        assert chat.wait_end() == 0


def test_ctrl_c_stops_the_answer_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_patient_config(tmp_path, tiny_checkpoint)
    # The answer is as long as what it is to, and takes minutes.
    with fault_daemon(config, "--token-s", "0.05") as daemon:
        stop_an_answer(daemon, 2000 * "Be brief and kind. ")


def stop_an_answer(daemon: FaultDaemon, system: str) -> None:
    with TerminalCommand(
        *("chat", "--address", daemon.grpc_address, "--no-history", "--system", system)
    ) as chat:
        chat.wait_for("> ")
        chat.type("Hello\n")
        chat.wait_for(r"Hello\r\n.")
        chat.type("\x03")
        chat.wait_for("stopped\r\n> ")
        chat.type("/id\n")
        request_id = chat.wait_for(r"\S+\r\n> ").split()[-2]
        chat.interrupt("/quit ends\r\n> ")
        chat.type("/set max_tokens 3\n")
        chat.wait_for("max_tokens: 3\r\n> ")
        chat.type("Go on\n")
        assert "3 tokens" in chat.wait_for("ended by length.*> ")
        chat.type("/quit\n")
        assert chat.wait_end() == 0
    told = run_command("explain", request_id, "--admin", daemon.admin, "--json")
    (end,) = (entry for entry in json.loads(told.stdout)["timeline"] if entry["event"] == "ended")
    assert end["reason"] == "cancelled"


def test_commands_that_cannot_be_carried_out(daemon: RunningDaemon, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"system": "", "messages": [{"role": "user"}]}')
    with TerminalCommand("chat", "--address", daemon.grpc_address, "--no-history") as chat:
        chat.wait_for("> ")
        for typed, said in (
            ("/nothing", "/nothing: is no command"),
            ("/undo", "nothing was asked yet"),
            ("/retry", "nothing was asked yet"),
            ("/tier gold", "gold: is none of interactive, batch"),
            ("/model other", "other: is none of demo"),
            ("/set heat 3", "heat: is none of max_tokens"),
            ("/set temperature 3", "allowed: 0 to 2"),
            ("/load", "FILE: is missing"),
            (f"/load {tmp_path}/none", "cannot be read: No such file"),
            (f"/load {tmp_path}/other.json", "holds no chat that was saved"),
            (f"/save {tmp_path}/none/chat", "cannot be written: No such file"),
            ("/save ~no-such-user/chat", "cannot be written: No such file"),
            ("/quit now", "/quit: takes nothing"),
        ):
            chat.type(f"{typed}\n")
            assert said in chat.wait_for(r"omniserve: .*\r\n> "), typed
        chat.type("/set top_p 0\n")
        chat.wait_for("top_p: 0.*> ")
        chat.type("Hello\n")
        assert "omniserve: top_p: 0.0 is not allowed" in chat.wait_for(r"omniserve: .*\r\n> ")
        chat.type("/set top_p\n")
        chat.wait_for("top_p: not set.*> ")
        chat.type("/set max_tokens 2\n")
        chat.wait_for("> ")
        # The question that failed is still there to be asked.
        chat.type("/retry\n")
        chat.wait_for("2 tokens.*> ")
        chat.type("/quit\n")
        assert chat.wait_end() == 0


def test_a_talk_has_no_json(daemon: RunningDaemon) -> None:
    with TerminalCommand("chat", "--json", "--address", daemon.grpc_address) as chat:
        chat.wait_for("omniserve: --json: needs a MESSAGE")
        assert chat.wait_end() == 2
