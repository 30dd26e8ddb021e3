"""What is shipped, what depends on what, and that the pins say the same as the metadata."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("omniserve", "scheduler", "cpu_attn")
# Modules of a distribution that a declared one requires at one exact version, as a part of itself.
PARTS = {"llvmlite": "numba", "pydantic_core": "pydantic"}
# Only in an extra, and imported only where it is found.
OPTIONAL = {"torch_npu", "flashinfer", "opentelemetry"}


def imported_modules(package: str) -> Iterator[tuple[Path, str]]:
    """Every file of a package with each top-level module it imports, wherever in the file."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, alias.name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield path, node.module.partition(".")[0]


def declared(section: str, option: str) -> list[Requirement]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in parser[section][option].split("\n") if line.strip()]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(key): version for key, version in pairs}


@pytest.mark.parametrize("package", PACKAGES)
def test_top_level_names_belong_to_this_distribution_alone(package: str) -> None:
    """Another distribution's `scheduler` would overwrite ours without a word from pip."""
    assert set(packages_distributions()[package]) == {"omniserve"}


def test_scheduler_imports_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"scheduler"}
    assert [found for found in imported_modules("scheduler") if found[1] not in allowed] == []


def test_cpu_attn_imports_numpy_and_numba_only() -> None:
    allowed = sys.stdlib_module_names | {"cpu_attn", "numpy", "numba", "llvmlite"}
    assert [found for found in imported_modules("cpu_attn") if found[1] not in allowed] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_directory_of_modules_is_a_package(package: str) -> None:
    """A directory without __init__.py works in the checkout and is missing from the wheel."""
    directories = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [path for path in sorted(directories) if not (path / "__init__.py").exists()] == []


def shipped_data(package: str) -> set[str]:
    """Patterns of files beside the modules, relative to the package."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return set(re.split(r"[,\s]+", parser["options.package_data"][package].strip()))


def tracked_or_new_files(folder: str) -> list[str]:
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", folder)
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [name for name in found.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout: nothing tells what is ours")
@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_beside_the_modules_is_shipped(package: str) -> None:
    """What no pattern matches works in the checkout and is missing from the wheel."""
    inner = [name.removeprefix(f"{package}/") for name in tracked_or_new_files(package)]
    assert f"{package}/__init__.py".removeprefix(f"{package}/") in inner
    # As setuptools does: a star does not go below a directory.
    patterns = shipped_data(package)
    matched = {
        path.relative_to(ROOT / package).as_posix()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    assert {name for name in inner if not name.endswith(".py")} - matched == set()


def undeclared_imports(
    folder: str, declared_by: list[Requirement], *beside: str
) -> set[tuple[str, str]]:
    """Of its modules, which may import each other and those of the folders beside."""
    names = {canonicalize_name(requirement.name) for requirement in declared_by}
    folders = (folder, *beside)
    local = {path.stem for each in folders for path in (ROOT / each).glob("*.py")} | {"fuzz"}
    known = sys.stdlib_module_names | set(PACKAGES) | OPTIONAL | local
    owners = packages_distributions()
    undeclared = set()
    for path, module in imported_modules(folder):
        found = {PARTS.get(module, canonicalize_name(name)) for name in owners.get(module, ())}
        if module not in known and not found & names:
            undeclared.add((path.relative_to(ROOT).as_posix(), module))
    return undeclared


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_of_a_package_is_declared(package: str) -> None:
    assert undeclared_imports(package, declared("options", "install_requires")) == set()


def test_every_import_of_the_tests_is_declared() -> None:
    wanted = declared("options", "install_requires") + declared("options.extras_require", "dev")
    assert undeclared_imports("tests", wanted, "benchmarks") == set()


def test_pins_satisfy_the_declared_ranges() -> None:
    pinned = pins("runtime.txt") | pins("dev.txt") | {"torch": "2.13.0"}
    wanted = declared("options", "install_requires") + declared("options.extras_require", "dev")
    assert len(wanted) > 20
    for requirement in wanted:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_pins_are_complete() -> None:
    """They are installed without looking at dependencies, so none may be missing."""
    pinned = pins("runtime.txt") | {"torch": ""}
    missing = set()
    for name in pinned:
        try:
            wanted = map(Requirement, requires(name) or ())
        except PackageNotFoundError:  # another Python's pin
            continue
        for requirement in wanted:
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing |= {canonicalize_name(requirement.name)} - pinned.keys()
    assert missing == set()


def test_no_pin_brings_a_cuda_build() -> None:
    names = pins("runtime.txt").keys() | pins("dev.txt").keys()
    assert not {name for name in names if re.match(r"torch|triton|nvidia|cuda", name)}


def test_bootstrap_pins_a_supported_torch() -> None:
    text = (ROOT / "scripts" / "python_env.sh").read_text()
    found = re.search(r"^TORCH_VERSION=(\S+)$", text, re.MULTILINE)
    assert found is not None
    (torch,) = (r for r in declared("options", "install_requires") if r.name == "torch")
    assert torch.specifier.contains(found[1])


def test_an_engine_in_a_process_of_ones_own_needs_four_packages_alone() -> None:
    """As the README says: torch, numpy, numba and transformers."""
    daemons = ("fastapi", "grpc", "msgspec", "prometheus_client", "re2", "zmq")
    code = f"import sys; sys.modules.update(dict.fromkeys({daemons})); import omniserve.engine.core"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
