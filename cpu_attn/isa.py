"""Which vector instructions kernels are written for, chosen once when the package is imported.

Asking LLVM for an instruction that the CPU lacks ends the process, so a path is taken only where
every feature that it needs is there.
"""

import os
import platform
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
from numba import config

VARIABLE = "OMNISERVE_CPU_ISA"


@dataclass(frozen=True, slots=True)
class Isa:
    """A path, its vector width in float32 lanes, and what its registers have room for."""

    name: str
    lanes: int
    num_sums: int
    """Accumulators of a tile: they, its rows and its loads fill the registers together."""
    features: frozenset[str]
    """x86 features, as LLVM names them, that it needs."""
    converts_float16: bool
    dots_bfloat16: bool


_AVX2 = Isa("avx2", 8, 8, frozenset({"avx2", "fma", "f16c"}), True, False)
_AVX512 = Isa(
    "avx512",
    16,
    16,
    _AVX2.features | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"},
    True,
    False,
)
_AVX512_BF16 = Isa("avx512_bf16", 16, 16, _AVX512.features | {"avx512bf16"}, True, True)
_PORTABLE = Isa("portable", 4, 8, frozenset(), False, False)
_X86_PATHS = (_AVX512_BF16, _AVX512, _AVX2, _PORTABLE)
NAMES = tuple(isa.name for isa in _X86_PATHS)

_X86_NAMES = ("x86_64", "AMD64")
_BASES = frozenset({"sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "xsave"})
"""Features that all paths but the portable one are built on."""


def _cpu_features() -> frozenset[str]:
    """What the CPU has and numba may use."""
    if config.CPU_FEATURES is not None:
        return _listed_features(config.CPU_FEATURES)
    if config.CPU_NAME not in (None, "host"):
        # Some other CPU was asked for by name; what it has is not known here.
        return frozenset()
    there = {name for name, there in llvm.get_host_cpu_features().items() if there}
    if not config.ENABLE_AVX:
        there = {name for name in there if not name.startswith("avx")}
    return frozenset(there)


def _listed_features(text: str) -> frozenset[str]:
    """Of `+avx2,-avx512f`: what is on in the end."""
    there: set[str] = set()
    for word in text.split(","):
        sign, name = word[:1], word[1:]
        if sign == "+":
            there.add(name)
        elif sign == "-":
            there.discard(name)
            if name in _BASES:
                # LLVM takes what is built on a feature away with it, whatever else is listed.
                return frozenset()
    return frozenset(there)


def available() -> tuple[Isa, ...]:
    """Paths that this CPU can take, the best first; the last is the portable one."""
    if platform.machine() not in _X86_NAMES:
        return (_PORTABLE,)
    features = _cpu_features()
    return tuple(isa for isa in _X86_PATHS if isa.features <= features)


def _choose() -> Isa:
    paths = available()
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return paths[0]
    for isa in paths:
        if isa.name == wanted.lower():
            return isa
    allowed = ", ".join(isa.name for isa in paths)
    raise ValueError(f"{VARIABLE}={wanted}: this CPU can take {allowed}")


@cache
def active() -> Isa:
    """The path of this process.

    Raises ValueError where OMNISERVE_CPU_ISA, in any capitals, names none that the CPU can take;
    empty is as if it were not set.
    """
    isa = _choose()
    if isa is not available()[0]:
        # Without the features themselves a lower path would still be compiled to higher ones.
        config.CPU_NAME = "generic" if isa is _PORTABLE else "x86-64-v3"
        config.CPU_FEATURES = ",".join(f"+{name}" for name in sorted(isa.features))
    return isa
