"""Runs of the guided fuzzer, each for so long or for so many cases, and what they found."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fuzz.corpus import MAX_CASE_BYTES, load_corpus, packed, save_corpus, unpack
from fuzz.sane_engine import make_checkpoint

CASE_TIMEOUT_S = 30
MEMORY_MB = 4096
_LIMITS = (
    f"-max_len={MAX_CASE_BYTES}",
    f"-timeout={CASE_TIMEOUT_S}",
    f"-rss_limit_mb={MEMORY_MB}",
)
_NUM_CASES = re.compile(r"^stat::number_of_executed_units: (\d+)$", re.MULTILINE)
_TAIL_LINES = 40


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target."""

    target: str
    num_cases: int
    seconds: float
    num_kept: int = 0
    """Cases in its corpus."""
    finding: str = ""
    """What went wrong, and where the case is; empty where nothing did."""

    def __str__(self) -> str:
        rate = self.num_cases / max(self.seconds, 1e-9)
        kept = f", corpus of {self.num_kept}" if self.num_kept else ""
        verdict = "FOUND A DEFECT" if self.finding else "no defect"
        return (
            f"{self.target}: {self.num_cases:,} cases in {self.seconds:.0f} s, "
            f"{rate:,.0f} cases/s{kept}, {verdict}"
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one target; whichever is used up first ends it."""

    seconds: int
    cases: int


def run_guided(target: str, budget: Budget, findings: Path) -> Outcome:
    """Fuzzes one target in processes of their own, beginning with its corpus, and keeps what is
    new in that. Cases that do harm are left in `findings`."""
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="omniserve-fuzz-") as name:
        scratch = Path(name)
        command = _command(target, scratch)
        kept, merged = scratch / "kept", scratch / "merged"
        unpack(load_corpus(target), kept)
        merged.mkdir()
        started_s = time.monotonic()
        run = _run(
            command,
            f"-max_total_time={budget.seconds}",
            f"-runs={budget.cases}",
            f"-artifact_prefix={findings}/{target}-",
            "-print_final_stats=1",
            str(kept),
        )
        seconds = time.monotonic() - started_s
        finding = _finding(run) or _finding(_run(command, "-merge=1", str(merged), str(kept)))
        num_kept = save_corpus(target, packed(kept if finding else merged))
    found = _NUM_CASES.search(run.stderr)
    return Outcome(target, int(found[1]) if found else 0, seconds, num_kept, finding)


def _command(target: str, scratch: Path) -> Path:
    """A program that is the fuzzer of this target."""
    command = scratch / "fuzzer"
    words = [sys.executable, "-m", "fuzz.guided", command, target, make_checkpoint(scratch)]
    shown = " ".join(shlex.quote(str(word)) for word in (*words, *_LIMITS))
    command.write_text(f'#!/bin/sh\nexec {shown} "$@"\n')
    command.chmod(0o700)
    return command


def _run(command: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [command, *options],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _finding(run: subprocess.CompletedProcess[str]) -> str:
    """What the fuzzer said last, where it found something."""
    if run.returncode == 0:
        return ""
    # Its progress is on lines that begin with a number.
    lines = [line for line in (run.stdout + run.stderr).splitlines() if not line.startswith("#")]
    return "\n".join([f"exit status {run.returncode}", *lines[-_TAIL_LINES:]])
