"""Which vector path is taken, and that a CPU with fewer features is served as well."""

import platform

import llvmlite.binding as llvm
import pytest
from kernel_processes import TESTS, output, start_python
from numba import config

from cpu_attn import Element, isa

ROOT = TESTS.parent
FEATURES_OF = {
    "avx2": "+avx2,+fma,+f16c",
    "avx512": "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd",
}
FEATURES_OF["avx512_bf16"] = FEATURES_OF["avx512"] + ",+avx512bf16"
SHOW = "from cpu_attn import isa; print(*(path.name for path in isa.available()))"
ACTIVE = (
    "from cpu_attn import isa; from numba import config; active = isa.active(); "
    "print(active.name, config.CPU_NAME, config.CPU_FEATURES)"
)
# Prints the path, and by the way compiles and runs a kernel for the elements of a cache given.
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from attention_cases import assert_right, make_case, split_shape
from cpu_attn import Element, KernelVariant, isa

for element in (Element(int(number)) for number in sys.argv[2:]):
    case = make_case(KernelVariant(element, Element.FLOAT32, 16), split_shape(context_lens=(99,)))
    assert_right(case, *case.run())
print(isa.active().name)
"""
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="about x86 features")


@pytest.fixture
def numba_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in an environment that says nothing of the CPU; a test may change them.

    Set in this process, for one of its own costs a start of numba each. That numba takes them from
    the environment is seen in the processes of the tests at the end.
    """
    for name, value in (("CPU_NAME", None), ("CPU_FEATURES", None), ("ENABLE_AVX", 1)):
        monkeypatch.setattr(config, name, value)
    return monkeypatch


def names_of_paths() -> str:
    return " ".join(path.name for path in isa.available())


def printed(code: str, *arguments: str, **variables: str) -> str:
    process = start_python(ROOT, "-c", code, *arguments, variables=variables)
    return output(process)[0].strip()


@ON_X86
@pytest.mark.parametrize(
    ("features", "paths"),
    [
        ("", "portable"),
        ("+cx16", "portable"),
        ("+sse4.2", "portable"),
        ("+avx2,+fma", "portable"),
        (FEATURES_OF["avx2"], "avx2 portable"),
        (FEATURES_OF["avx2"] + ",+avx512f,+avx512vl", "avx2 portable"),
        (FEATURES_OF["avx2"] + ",+avx512bf16", "avx2 portable"),
        (FEATURES_OF["avx512"], "avx512 avx2 portable"),
        (FEATURES_OF["avx512_bf16"], "avx512_bf16 avx512 avx2 portable"),
        (FEATURES_OF["avx512_bf16"] + ",-avx512vl", "avx2 portable"),
        ("-avx2," + FEATURES_OF["avx2"], "avx2 portable"),
        (FEATURES_OF["avx2"] + ",-avx2", "portable"),
        (FEATURES_OF["avx512"] + ",-avx", "portable"),
        ("-sse4.2," + FEATURES_OF["avx2"], "portable"),
    ],
)
def test_paths_of_listed_features(
    features: str, paths: str, numba_settings: pytest.MonkeyPatch
) -> None:
    numba_settings.setattr(config, "CPU_FEATURES", features)
    assert names_of_paths() == paths


@ON_X86
def test_paths_of_this_cpu() -> None:
    there = {name for name, has in llvm.get_host_cpu_features().items() if has}
    expected = [
        name
        for name in ("avx512_bf16", "avx512", "avx2")
        if {word[1:] for word in FEATURES_OF[name].split(",")} <= there
    ]
    assert printed(SHOW).split() == [*expected, "portable"]
    assert printed(SHOW, NUMBA_CPU_NAME="host").split() == [*expected, "portable"]


@pytest.mark.parametrize("features", [None, ""])
@pytest.mark.parametrize("name", ["generic", "x86-64-v3", "sapphirerapids"])
def test_paths_of_a_cpu_that_is_named(
    name: str, features: str | None, numba_settings: pytest.MonkeyPatch
) -> None:
    """Without features, or with none of them, as numba has it of `generic`."""
    numba_settings.setattr(config, "CPU_NAME", name)
    numba_settings.setattr(config, "CPU_FEATURES", features)
    assert names_of_paths() == "portable"


def test_paths_where_avx_is_not_wanted(numba_settings: pytest.MonkeyPatch) -> None:
    numba_settings.setattr(config, "ENABLE_AVX", 0)
    assert names_of_paths() == "portable"


def test_the_best_path_leaves_the_choice_of_the_cpu_to_numba() -> None:
    assert printed(ACTIVE) == f"{isa.available()[0].name} None None"


@ON_X86
@pytest.mark.parametrize("path", isa.available()[1:])
def test_a_lower_path_tells_numba_of_its_features_alone(path: isa.Isa) -> None:
    cpu = "generic" if path.name == "portable" else "x86-64-v3"
    features = ",".join(f"+{name}" for name in sorted(path.features))
    assert printed(ACTIVE, OMNISERVE_CPU_ISA=path.name) == f"{path.name} {cpu} {features}".strip()


@pytest.mark.parametrize("name", ["avx1024", "avx2,avx512", " "])
def test_a_name_that_is_no_path(name: str) -> None:
    assert_refused(name, allowed=[path.name for path in isa.available()])


@pytest.mark.parametrize("name", ["PORTABLE", "Portable"])
def test_capitals_do_not_matter(name: str) -> None:
    assert printed(ACTIVE, OMNISERVE_CPU_ISA=name).split()[0] == "portable"


def test_an_empty_name_is_none() -> None:
    assert printed(ACTIVE, OMNISERVE_CPU_ISA="").split()[0] == isa.available()[0].name


@ON_X86
def test_a_path_that_the_cpu_cannot_take() -> None:
    assert_refused("avx512", allowed=["avx2", "portable"], NUMBA_CPU_FEATURES=FEATURES_OF["avx2"])
    assert_refused("avx2", allowed=["portable"], NUMBA_CPU_NAME="nehalem")


def assert_refused(name: str, *, allowed: list[str], **variables: str) -> None:
    """With a Python error of one line, by the import of what compiles."""
    code = "import cpu_attn.isa; cpu_attn.isa.active()"
    process = start_python(ROOT, "-c", code, variables={isa.VARIABLE: name, **variables})
    _, errors = process.communicate()
    assert process.returncode == 1
    line = f"ValueError: OMNISERVE_CPU_ISA={name}: this CPU can take {', '.join(allowed)}"
    assert errors.splitlines()[-1] == line


@ON_X86
@pytest.mark.parametrize(
    ("variables", "path", "elements"),
    [
        # All of them are read on this path by test_cpu_attn_isa.py, for a CPU that has even less.
        ({"NUMBA_CPU_NAME": "nehalem"}, "portable", [Element.FLOAT16, Element.INT8]),
        # The same path again: the one conversion that AVX brings.
        ({"NUMBA_ENABLE_AVX": "0"}, "portable", [Element.FLOAT16]),
        (
            {
                "NUMBA_CPU_NAME": "x86-64",
                "NUMBA_CPU_FEATURES": FEATURES_OF["avx2"] + ",+avx512f",
            },
            "avx2",
            # Plain float32 is what queries and outputs are.
            [Element.FLOAT16, Element.BFLOAT16, Element.INT8],
        ),
    ],
)
def test_kernels_of_a_cpu_with_fewer_features(
    variables: dict[str, str], path: str, elements: list[Element]
) -> None:
    """A feature too many would end the process with LLVM's "Cannot select"."""
    if path not in [found.name for found in isa.available()]:
        pytest.skip(f"this CPU lacks {path}")
    numbers = [str(int(element)) for element in elements]
    assert printed(RUN, str(TESTS), *numbers, **variables) == path
