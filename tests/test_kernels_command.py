"""`omniserve kernels warm-up`: what is compiled, what is printed, and the exit status."""

import subprocess
import sys
from pathlib import Path

import pytest
from kernel_processes import NO_HOME, TESTS, environment

from omniserve.cli import main

CONFIG = """
device: {{kind: cpu}}
models:
  - {{name: one, path: "{path}", dtype: float32}}
  - {{name: two, path: "{path}", dtype: float32}}
tiers:
  - {{name: batch, class: best_effort}}
"""
# Takes the kernels of one decoder layer, as an engine does, and counts what it had to compile.
ENGINE = """
import sys
import torch
from cpu_attn.kernel_cache import num_compiled
from omniserve.engine.build import build_engine
"""


def warm_up(*arguments: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omniserve", "kernels", "warm-up", *arguments],
        env=environment(TESTS.parent, variables),
        capture_output=True,
        text=True,
    )
