"""Compiled functions on disk: one is never taken for another, and nobody else's is run."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
from kernel_processes import copy_package, output, start_python

CALLBACKS = """
import ctypes, sys
from numba import carray, types
from cpu_attn import call_when_compiling
from cpu_attn._jit import c_callback

said = []
call_when_compiling(lambda: said.append("compiling"))

ADDED = 0

def writes(number):
    def run(pointer):
        carray(pointer, 1)[0] = number + ADDED
    return c_callback(types.void(types.CPointer(types.int64)))(run)

callbacks = [(int(text), writes(int(text))) for text in sys.argv[1:]]
for number, callback in callbacks:
    result = ctypes.c_int64(0)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(callback.address)(ctypes.addressof(result))
    assert result.value == number + ADDED, (result.value, number)
print([callback.cache_hits for _, callback in callbacks])
print(said)
"""


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.evidence), 0o755)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_package(tmp_path_factory.mktemp("site"))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "callbacks.py"
    path.write_text(CALLBACKS)
    return path


def hits(site: Path, script: Path, *numbers: str) -> list[int]:
    """For each callback 1 where it came from the cache; their results are right."""
    variables = {"NUMBA_CACHE_DIR": script.parent / "cache"}
    process = start_python(site, str(script), *numbers, variables=variables)
    lines = output(process)[0].splitlines()
    found: list[int] = eval(lines[0])
    # It is said once, and only where something is compiled.
    assert lines[1] == ("[]" if all(found) else "['compiling']")
    return found


def test_functions_of_the_same_text_that_different_processes_compiled(
    site: Path, script: Path
) -> None:
    """Each is its process's first, so that numba gives all the same symbol."""
    assert hits(site, script, "1") == [0]
    assert hits(site, script, "2") == [0]
    assert hits(site, script, "1", "2", "3") == [1, 1, 0]
    assert hits(site, script, "3", "2", "1") == [1, 1, 1]


def test_a_change_outside_the_package_is_seen(site: Path, script: Path) -> None:
    assert hits(site, script, "1") == [0]
    assert hits(site, script, "1") == [1]
    script.write_text(CALLBACKS.replace("ADDED = 0", "ADDED = 5"))
    assert hits(site, script, "1") == [0]


def test_a_function_without_a_source_file_is_not_kept(site: Path, tmp_path: Path) -> None:
    for _ in range(2):
        variables = {"NUMBA_CACHE_DIR": tmp_path}
        process = start_python(site, "-c", CALLBACKS, "1", variables=variables)
        assert output(process)[0].splitlines()[0] == "[0]"


def test_the_file_of_another_function_is_not_taken(site: Path, script: Path) -> None:
    hits(site, script, "1")
    (first,) = script.parent.rglob("*.kernel")
    content = first.read_bytes()
    hits(site, script, "2")
    (second,) = set(script.parent.rglob("*.kernel")) - {first}
    second.write_bytes(content)
    assert hits(site, script, "2") == [0]


@pytest.mark.parametrize(
    ("mode", "is_run"), [(0o644, True), (0o600, True), (0o664, False), (0o646, False)]
)
def test_no_pickle_is_read_that_others_may_have_written(
    site: Path, script: Path, mode: int, is_run: bool
) -> None:
    hits(site, script, "1")
    (kernel,) = script.parent.rglob("*.kernel")
    evidence = script.parent / "evidence"
    pickled = pickle.dumps(("key", Payload(evidence)))
    kernel.write_bytes(hashlib.sha256(pickled).digest() + pickled)
    kernel.chmod(mode)
    assert hits(site, script, "1") == [0]
    assert evidence.exists() == is_run
    # What could not be trusted was replaced.
    assert kernel.stat().st_mode & 0o777 == 0o644
    assert hits(site, script, "1") == [1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_no_pickle_of_another_user_is_read(site: Path, script: Path) -> None:
    hits(site, script, "1")
    (kernel,) = script.parent.rglob("*.kernel")
    os.chown(kernel, 12345, 12345)
    assert hits(site, script, "1") == [0]
    assert hits(site, script, "1") == [1]
