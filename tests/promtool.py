"""Runs promtool, which Debian has in its package `prometheus`."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed; Debian has it in the package prometheus"
)


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """What it printed; fails the test where promtool finds anything wrong."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said
