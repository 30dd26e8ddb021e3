"""Processes that compile kernels of a copy of the package, each with an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "cpu_attn"
_OURS = ("NUMBA_", "OMNISERVE_", "XDG_CACHE_HOME", "PYTHONPATH")
Variables = Mapping[str, str | Path]
NO_HOME = "/dev/null"
"""Nobody, not even root, can make a directory below it."""


@dataclass(frozen=True)
class Report:
    """What `warm_up_child` printed, the result for `merge_partials` last, and its warnings."""

    package: str
    folder: str | None
    from_cache: list[bool]
    is_kept: list[bool]
    seconds: list[float]
    errors: str

    def assert_all_from_cache(self) -> None:
        assert all(self.from_cache), self
        assert all(self.is_kept), self

    def assert_nothing_from_cache(self) -> None:
        assert not any(self.from_cache), self


def copy_package(site: Path) -> Path:
    """The package as if installed in `site`, nothing compiled."""
    shutil.copytree(PACKAGE, site / "cpu_attn", ignore=shutil.ignore_patterns("__pycache__"))
    return site


def environment(site: Path, variables: Variables) -> dict[str, str]:
    """What pytest was given, but for all that concerns kernels and where they are kept."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    given = {name: str(value) for name, value in variables.items()}
    # Else Python itself would write beside the package.
    return others | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"} | given


def start_python(
    site: Path, *arguments: str, variables: Variables, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`before`: a command that is given Python's as its last arguments."""
    return subprocess.Popen(
        [*before, sys.executable, *arguments],
        env=environment(site, variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> tuple[str, str]:
    """stdout and stderr of a process that must succeed."""
    out, errors = process.communicate()
    assert process.returncode == 0, (process.returncode, errors[-4000:])
    return out, errors


def start_warm_up(
    site: Path,
    *variants: str,
    variables: Variables,
    largest_file: int = -1,
    before: Sequence[str] = (),
) -> subprocess.Popen[str]:
    script = str(TESTS / "warm_up_child.py")
    arguments = (script, str(largest_file), *variants)
    return start_python(site, *arguments, variables=variables, before=before)


def finish_warm_up(process: subprocess.Popen[str]) -> Report:
    out, errors = output(process)
    return Report(**json.loads(out), errors=errors)
