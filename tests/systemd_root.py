"""A Debian system in a directory, booted with its own systemd to run one test unit."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SUITE = "bookworm"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3")
TOOLS = ("systemd-nspawn", "debootstrap")
BUILD_LIMIT_S = 600.0
UNITS = "/usr/local/lib/systemd/system"
_DONE = ".complete"


def missing_prerequisite() -> str:
    """Why no system can be booted here; empty where one can."""
    if os.geteuid() != 0:
        return "booting a system in a directory takes root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return (
            f"{' and '.join(absent)} not installed: apt-get install systemd-container debootstrap"
        )
    if sys.version_info[:2] != (3, 11):
        return "packages for Debian 12's Python 3.11 are needed: PYTHON=python3.11 make setup"
    return ""


def debian_root(directory: Path) -> Path:
    """A root that is made once, and never written to afterwards."""
    root = directory / "root"
    if not (directory / _DONE).exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        done = subprocess.run(
            [*command, SUITE, str(root)],
            capture_output=True,
            text=True,
            timeout=BUILD_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        (directory / _DONE).touch()
    return root


def boot(
    root: Path,
    read_only: Mapping[Path, str],
    writable: Mapping[Path, str],
    log: Path,
    limit_s: float,
) -> None:
    """Runs until the system powers itself off; what it changes in its root is lost."""
    binds = [f"--bind-ro={here}:{there}" for here, there in read_only.items()]
    binds += [f"--bind={here}:{there}" for here, there in writable.items()]
    command: Sequence[str] = (
        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
        *("--directory", str(root), "--volatile=overlay", "--private-network"),
        *("--link-journal=no", "--console=pipe", *binds),
    )
    with log.open("w") as output:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
        )


def write_environment(directory: Path) -> Path:
    """A virtual environment of the system's own Python that finds packages at other places."""
    site = directory / "lib/python3.11/site-packages"
    site.mkdir(parents=True)
    (site / "elsewhere.pth").write_text("/opt/source\n/opt/packages\n")
    (directory / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.2\n")
    programs = directory / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to("/usr/bin/python3")
    command = programs / "omniserve"
    command.write_text(
        "#!/opt/omniserve/bin/python3\n"
        "import sys\n"
        "from omniserve.cli import main\n"
        "sys.exit(main())\n"
    )
    command.chmod(0o755)
    return directory


def write_test_unit(directory: Path, command: str) -> Path:
    """Units that run a command at boot and power the system off, whatever becomes of it."""
    wanted = directory / "multi-user.target.wants"
    wanted.mkdir(parents=True)
    (directory / "omniserve-tests.service").write_text(
        "[Unit]\n"
        "After=multi-user.target\n"
        "[Service]\n"
        # Not oneshot: the boot would not be over while it runs.
        "Type=simple\n"
        f"ExecStart={command}\n"
        "ExecStopPost=systemctl poweroff --no-block\n"
    )
    (wanted / "omniserve-tests.service").symlink_to(f"{UNITS}/omniserve-tests.service")
    return directory
