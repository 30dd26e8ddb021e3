"""The one place that knows numba's compilation flags and where compiled kernels are kept."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from cpu_attn import isa


def _cache_root() -> Path:
    """NUMBA_CACHE_DIR, else beside the package, else the user's cache, else a new directory.

    Cached kernels are loaded with pickle, so a directory that others may write to is never taken.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    package = Path(__file__).parent
    if os.access(package, os.W_OK):
        return package / "__pycache__"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omniserve"
    try:
        user_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="omniserve-kernels-"))
    return user_cache


def _source_digest() -> str:
    """Changes with any file of this package; numba itself only watches the kernel's own file."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


numba.config.CACHE_DIR = str(_cache_root() / f"kernels-{isa.active().name}-{_source_digest()}")


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function of Python and of other kernels that runs without the interpreter's lock."""
    decorate: Callable[[Callable[..., Any]], Any]
    decorate = numba.njit(signature, nogil=True, cache=True, error_model="numpy")
    return decorate


def c_callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function that C code may call from any thread; its address is `.address`."""
    decorate: Callable[[Callable[..., Any]], Any]
    decorate = numba.cfunc(signature, nopython=True, cache=True, error_model="numpy")
    return decorate
