"""Commands as real processes, with pipes or in a terminal of their own."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 60.0
ROOT = Path(__file__).parents[1]
# Makes the terminal that is its standard input the one whose keys send signals.
_IN_TERMINAL = """\
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from omniserve.cli import main
sys.exit(main())
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the tester's own settings reaches a command."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OMNISERVE_")}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "dumb"} | dict(changes)


def run_command(
    *arguments: str | bytes, text: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`omniserve` to its end, with `text` on a pipe as its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "omniserve", *arguments],
        input=text,
        capture_output=True,
        env=_environment(environment),
        timeout=PATIENCE_S,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


class TerminalCommand:
    """`omniserve` with somebody at a keyboard; leaving the context kills what still runs."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 200, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=_environment(environment),
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""
        """All that came, without escape sequences."""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait(timeout=PATIENCE_S)
        os.close(self._ours)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def interrupt(self, pattern: str) -> str:
        """Ctrl-C until the pattern comes; what came is returned as by `wait_for`.

        Python's readline misses a signal between writing its prompt and waiting for keys, where
        no human hits: it is pressed again then. A machine that is merely slow is waited for: a
        second one amid the answer to the first would end the command.
        """
        self.type("\x03")
        while not select.select([self._ours], [], [], 10.0)[0]:
            self.type("\x03")
        return self.wait_for(pattern)

    def wait_for(self, pattern: str) -> str:
        """What came since the last match, once it matches; the rest is for the next time."""
        expression, until_s = re.compile(pattern, re.DOTALL), time.monotonic() + PATIENCE_S
        while (found := expression.search(self.shown, self._seen)) is None:
            assert time.monotonic() < until_s, f"no {pattern!r} in {self.shown!r}"
            assert self._read(), f"ended before {pattern!r}: {self.shown!r}"
        part = self.shown[self._seen : found.end()]
        self._seen = found.end()
        return part

    def wait_end(self) -> int:
        """The exit status, with all that was shown read."""
        while self._read():
            pass
        return self.process.wait(timeout=PATIENCE_S)

    def _read(self) -> bool:
        """More of what is shown, if it comes in time; False at the end."""
        ready, _, _ = select.select([self._ours], [], [], PATIENCE_S)
        assert ready, f"nothing more came after {self.shown!r}"
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            # What Linux says where the other side is closed.
            return False
        self.shown = _ESCAPES.sub("", self.shown + data.decode(errors="replace"))
        return bool(data)
