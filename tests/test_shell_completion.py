"""What shells are taught, asked of the shells themselves."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_process import run_command

# Types words and presses Tab: prints what bash would offer.
_ASK_BASH = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
$(complete -p omniserve | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bash") / "script"
    done = run_command("completion", "bash")
    assert (done.returncode, done.stderr) == (0, "")
    path.write_text(done.stdout)
    yield path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["mod"], {"models", "model"}),
        (["config", ""], {"check", "show", "schema"}),
        (["bench", "trace", "s"], {"slice", "scale", "synth"}),
        (["tiers", "--j"], {"--json"}),
        (["serve", "--log-level", "w"], {"warning"}),
        (["completion", "z"], {"zsh"}),
    ],
)
def test_bash_offers(bash_script: Path, words: list[str], offered: set[str]) -> None:
    command = ["bash", "--norc", "-c", _ASK_BASH, "bash", str(bash_script), "omniserve", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (set(done.stdout.split()), done.stderr) == (offered, "")


def test_bash_offers_files(bash_script: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").touch()
    command = ["bash", "--norc", "-c", _ASK_BASH, "bash", str(bash_script)]
    command += ["omniserve", "serve", str(tmp_path / "ser")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "serve.yaml")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_take_their_scripts(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(run_command("completion", shell).stdout)
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("omniserve config ", {"check", "show", "schema"}),
        ("omniserve bench trace s", {"slice", "scale", "synth"}),
        ("omniserve tiers --js", {"--json"}),
        ("omniserve completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_fish_offers(tmp_path: Path, line: str, offered: set[str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = tmp_path / "omniserve.fish"
    script.write_text(run_command("completion", "fish").stdout)
    command = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    # After a tab comes what it is for.
    assert {row.partition("\t")[0] for row in done.stdout.splitlines()} == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_name_commands_and_options(shell: str) -> None:
    script = run_command("completion", shell).stdout
    for word in ("explain", "dry-run", "max-tokens", "warm-up", "token-file"):
        assert word in script


def test_a_shell_that_is_not_known() -> None:
    done = run_command("completion", "cmd")
    assert done.returncode == 2 and "invalid choice: 'cmd'" in done.stderr
