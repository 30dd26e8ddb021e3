"""The other vector paths of this machine: each is held against the oracle in a process of its own.

The path is chosen when the package is imported, and it is the whole process's.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpu_attn import isa

ROOT = Path(__file__).resolve().parent.parent
OTHERS = [path.name for path in isa.available() if path != isa.active()]
# To compile all variants would take minutes. avx512 differs from avx512_bf16 in how it multiplies
# bfloat16 alone. On the lowest path LLVM has to find the longest ways to read the elements of a
# cache; plain float32 is what queries are. test_isa.py reads the others on avx2, in one shape.
VARIANT = "bfloat16-bfloat16-128"
LOWEST_VARIANTS = ("float16-float32-80", "int8-float32-128", VARIANT)


def run(code: list[str], path: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {isa.VARIABLE: path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *code], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", OTHERS)
def test_oracle_on(path: str) -> None:
    variants = LOWEST_VARIANTS if path == "portable" else (VARIANT,)
    chosen = f"test_oracle and ({' or '.join(variants)})"
    pytest_arguments = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen]
    done = run([*pytest_arguments, "tests/test_paged_attention.py"], path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("path", OTHERS)
def test_the_process_takes_the_path_that_it_is_told_to(path: str) -> None:
    code = "import cpu_attn; from cpu_attn import isa; assert isa.active().name == "
    done = run(["-c", code + repr(path)], path)
    assert done.returncode == 0, done.stderr


def test_a_path_that_is_not_there_is_an_error_and_no_crash() -> None:
    done = run(["-c", "import cpu_attn.merge"], "avx1024")
    assert done.returncode == 1
    assert "OMNISERVE_CPU_ISA=avx1024: this CPU can take" in done.stderr
    assert isa.available()[-1].name == "portable"
