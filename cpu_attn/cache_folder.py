"""Where compiled kernels are kept between processes, if anywhere.

They are loaded with pickle, which runs what it reads: nothing is read that another user of the
machine could have written.
"""

import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import llvmlite
import numba

from cpu_attn import isa

VARIABLE = "NUMBA_CACHE_DIR"


@cache
def cache_folder() -> Path | None:
    """In NUMBA_CACHE_DIR if set, else beside the package, else in the user's own cache.

    Its name changes with the vector path, the sources of this package, Python and numba. One that
    can only be read is taken where there is no better one. None, with a RuntimeWarning, where no
    place will do: kernels are then compiled by each process.
    """
    name = f"kernels-{isa.active().name}-{_digest()}"
    problems = []
    readable = None
    for root in _roots():
        folder = root / name
        try:
            # Not a secret: a daemon may be given what an administrator filled.
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            problem = distrust(folder.stat())
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            problems.append(f"{folder}: {problem}")
        elif os.access(folder, os.W_OK):
            return folder
        else:
            readable = readable or folder
    if readable is None:
        another = "another" if os.environ.get(VARIABLE) else "a"
        text = (
            f"compiled kernels cannot be kept ({'; '.join(problems)}); "
            f"{VARIABLE} may name {another} directory of your own"
        )
        # Of the package as a whole: the line that asked is nobody's fault.
        warnings.warn_explicit(text, RuntimeWarning, "cpu_attn", 0, module=__name__)
    return readable


def distrust(status: os.stat_result) -> str:
    """Why a file or folder might hold what another user wrote; empty where it cannot."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {mode:o}), which `chmod -R go-w` mends"
    return ""


def _roots() -> Iterator[Path]:
    given = os.environ.get(VARIABLE)
    if given:
        # The working directory may change before the next kernel is needed.
        yield Path(given).absolute()
        return
    yield Path(__file__).parent / "__pycache__"
    # A user without a home directory is one for whom the path is not absolute.
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(user_cache):
        yield Path(user_cache) / "omniserve"


def _digest() -> str:
    """Changes with any file of this package: a kernel is made of functions of several."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    versions = (numba.__version__, llvmlite.__version__, sys.implementation.cache_tag)
    digest.update(repr(versions).encode())
    return digest.hexdigest()[:16]
