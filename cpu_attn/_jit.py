"""The one place that knows numba's compilation flags."""

from collections.abc import Callable
from typing import Any

import numba
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from cpu_attn.kernel_cache import KernelCache, closure_digest

_FLAGS = {"nopython": True, "error_model": "numpy"}


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function of Python and of other kernels that runs without the interpreter's lock.

    Compiled at once for `signature`, or where that is None for each that it is called with.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        _name_apart(function)
        dispatcher: Any = numba.jit(nogil=True, **_FLAGS)(function)
        dispatcher._cache = KernelCache(function)
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return dispatcher

    return decorate


def c_callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function that C code may call from any thread; its address is `.address`."""

    def decorate(function: Callable[..., Any]) -> Any:
        _name_apart(function)
        callback: Any = CFunc(function, normalize_signature(signature), locals={}, options=_FLAGS)
        callback._cache = KernelCache(function)
        callback.compile()
        return callback

    return decorate


def _name_apart(function: Callable[..., Any]) -> None:
    """Symbols are made of names and a count that starts again in each process.

    So two variants from the cache could have the same symbol, and one would be taken for the other.
    """
    digest = closure_digest(function)
    if digest:
        function.__qualname__ += f"_{digest}"
