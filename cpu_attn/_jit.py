"""The one place that knows numba's compilation flags."""

from collections.abc import Callable
from typing import Any

import numba
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from cpu_attn.kernel_cache import KernelCache

_FLAGS = {"nopython": True, "error_model": "numpy"}


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function of Python and of other kernels that runs without the interpreter's lock.

    Compiled at once, for `signature` alone.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        # C callers take a c_callback: what numba would compile for them is nobody's.
        dispatcher = _dispatcher(function, no_cfunc_wrapper=True)
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return decorate


def kernel_part(function: Callable[..., Any]) -> Any:
    """A function of kernels alone, compiled for each signature that they call it with.

    Python must not call it: what that takes is not compiled.
    """
    return _dispatcher(function, no_cfunc_wrapper=True, no_cpython_wrapper=True)


def _dispatcher(function: Callable[..., Any], **options: bool) -> Any:
    dispatcher: Any = numba.jit(nogil=True, **_FLAGS, **options)(function)
    dispatcher._cache = KernelCache(function)
    return dispatcher


def c_callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function that C code may call from any thread; its address is `.address`."""

    def decorate(function: Callable[..., Any]) -> Any:
        callback: Any = CFunc(function, normalize_signature(signature), locals={}, options=_FLAGS)
        callback._cache = KernelCache(function)
        callback.compile()
        return callback

    return decorate
