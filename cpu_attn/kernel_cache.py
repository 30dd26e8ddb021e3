"""Compiled functions on disk, one file each.

numba's own cache is not used: an index that processes overwrite for each other can lead to another
variant's kernel where two compile at the same time, and a truncated file ends the program.
"""

import contextlib
import hashlib
import inspect
import os
import pickle
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from cpu_attn.cache_folder import cache_folder, distrust

_DIGEST_BYTES = hashlib.sha256().digest_size


class _ThreadTally(threading.local):
    num_compiled = 0
    num_lost = 0


_tally = _ThreadTally()
_on_compile: deque[Callable[[], None]] = deque()


def num_compiled() -> int:
    """Functions that were not in the cache when this thread wanted them, so far."""
    return _tally.num_compiled


def call_when_compiling(callback: Callable[[], None]) -> None:
    """Calls it once, where this process first wants a function that is not in the cache.

    Compiling all of them takes a minute or so, in which somebody may wonder.
    """
    _on_compile.append(callback)


def num_lost() -> int:
    """Functions that this thread compiled and could not save, so far."""
    return _tally.num_lost


class KernelCache:
    """The files of one function, as numba's dispatchers and callbacks ask for them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        source = _source_digest(inspect.getfile(function))
        self._name = f"{function.__module__}.{function.__name__}"
        # Without the digest of its source nothing would tell of a change outside this package.
        self._folder = cache_folder() if source else None
        code_digest = hashlib.sha256(code.co_code).hexdigest()
        self._key = (
            self._name,
            code.co_firstlineno,
            source,
            code_digest,
            _closure_digest(function),
        )

    @property
    def cache_path(self) -> str | None:
        return str(self._folder) if self._folder else None

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """What was saved for these argument types and this CPU, or None where it is not whole."""
        target_context.refresh()
        key = self._full_key(signature, target_context.codegen())
        state = None if self._folder is None else _load(self._folder / _file_name(key), key)
        if state is None:
            _tally.num_compiled += 1
            # Taken off first: whoever comes next, in any thread, finds nothing more to call.
            with contextlib.suppress(IndexError):
                _on_compile.popleft()()
            return None
        return CompileResult._rebuild(target_context, *state)

    def save_overload(self, signature: Any, result: Any) -> None:
        """Where it cannot be saved, the next process compiles again."""
        # Addresses of this process's objects are part of such code.
        if self._folder is None or result.library.has_dynamic_globals:
            _tally.num_lost += 1
            return
        key = self._full_key(signature, result.library.codegen)
        try:
            _save(self._folder / _file_name(key), dumps((key, result._reduce())))
        except OSError:
            _tally.num_lost += 1

    def _full_key(self, signature: Any, codegen: Any) -> tuple[str, ...]:
        return (*map(str, self._key), str(signature), str(codegen.magic_tuple()))


def _closure_digest(function: Callable[..., Any]) -> str:
    """Tells functions apart that were made of the same text; empty where nothing is enclosed."""
    cells = function.__closure__
    if not cells:
        return ""
    return hashlib.sha256(dumps(tuple(cell.cell_contents for cell in cells))).hexdigest()[:16]


@cache
def _source_digest(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def _file_name(key: tuple[str, ...]) -> str:
    return f"{key[0]}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.kernel"


def _load(path: Path, key: tuple[str, ...]) -> Any:
    try:
        with path.open("rb") as file:
            # The open file is asked, not its name, which may mean another by now.
            if distrust(os.fstat(file.fileno())):
                return None
            content = file.read()
    except OSError:
        return None
    digest, pickled = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(pickled).digest() != digest:
        return None
    saved_key, state = pickle.loads(pickled)
    return state if saved_key == key else None


def _save(path: Path, pickled: bytes) -> None:
    """Others see the whole file or none. Raises OSError."""
    descriptor, unfinished = tempfile.mkstemp(prefix=".unfinished-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(hashlib.sha256(pickled).digest() + pickled)
            # As the folder: others may read it.
            os.fchmod(file.fileno(), 0o644)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
