"""Kernels compiled ahead, in real processes: what one leaves behind the next one loads."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_processes import NO_HOME, Report, copy_package, finish_warm_up, start_warm_up

from cpu_attn import Element, KernelVariant, WarmUpStep, isa, warm_up

VARIANTS = ("float32:float32:16", "int8:float32:16")
NUM_RESULTS = len(VARIANTS) + 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that its sources stay as they are while these tests run."""
    return copy_package(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def first_reports(
    site: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Report]]:
    """An empty cache and two processes that fill it at the same time, in opposite orders."""
    cache = tmp_path_factory.mktemp("cache") / "made" / "by warm-up"
    orders = (VARIANTS, VARIANTS[::-1])
    variables = {"NUMBA_CACHE_DIR": cache, "MEETING_OF_TWO": tmp_path_factory.mktemp("meeting")}
    processes = [start_warm_up(site, *order, variables=variables) for order in orders]
    return cache, [finish_warm_up(process) for process in processes]


@pytest.fixture
def filled(first_reports: tuple[Path, list[Report]], tmp_path: Path) -> Path:
    """A copy of the filled cache, in another place."""
    return Path(shutil.copytree(first_reports[0], tmp_path / "moved"))


def run(
    site: Path,
    *variants: str,
    largest_file: int = -1,
    before: tuple[str, ...] = (),
    **variables: str | Path,
) -> Report:
    process = start_warm_up(
        site, *variants, variables=variables, largest_file=largest_file, before=before
    )
    return finish_warm_up(process)


def kernels(cache: Path, name: str = "cpu_attn.") -> list[Path]:
    found = sorted(cache.glob(f"kernels-*/*{name}*.kernel"))
    assert found
    return found


def test_two_processes_may_fill_an_empty_cache_together(
    first_reports: tuple[Path, list[Report]],
) -> None:
    cache, reports = first_reports
    for report in reports:
        assert report.folder is not None
        assert Path(report.folder).parent == cache
        assert len(report.from_cache) == NUM_RESULTS
        assert all(report.is_kept)
        assert min(report.seconds) > 0
    # Neither can have found all of it: what it wanted first was nobody's yet.
    assert not any(all(report.from_cache) for report in reports)
    assert not list(cache.rglob(".unfinished*"))


def test_a_filled_cache_may_be_moved_and_so_may_the_package(
    site: Path, filled: Path, tmp_path: Path
) -> None:
    run(site, *VARIANTS, NUMBA_CACHE_DIR=filled).assert_all_from_cache()
    elsewhere = copy_package(tmp_path / "other site")
    report = run(elsewhere, *VARIANTS, NUMBA_CACHE_DIR=filled)
    assert report.package == str(elsewhere / "cpu_attn")
    report.assert_all_from_cache()


def test_the_cache_may_be_named_by_a_relative_path(site: Path, filled: Path) -> None:
    run(site, NUMBA_CACHE_DIR=os.path.relpath(filled)).assert_all_from_cache()


def test_without_the_variable_kernels_lie_beside_the_package(tmp_path: Path) -> None:
    site = copy_package(tmp_path)
    first, second = run(site, HOME=NO_HOME), run(site, HOME=NO_HOME)
    assert first.folder is not None
    assert first.folder.startswith(str(site / "cpu_attn" / "__pycache__"))
    first.assert_nothing_from_cache()
    second.assert_all_from_cache()


@pytest.mark.parametrize(("home", "user_cache"), [("home", ""), (NO_HOME, "home/.cache")])
def test_beside_a_package_that_cannot_be_written_the_user_cache_is_taken(
    tmp_path: Path, home: str, user_cache: str
) -> None:
    site = copy_package(tmp_path / "site")
    # A file where the directory would be stops root as well.
    (site / "cpu_attn" / "__pycache__").touch()
    given = str(tmp_path / user_cache) if user_cache else ""
    report = run(site, HOME=tmp_path / home, XDG_CACHE_HOME=given)
    assert report.folder is not None
    assert Path(report.folder).parent == tmp_path / "home" / ".cache" / "omniserve"
    run(site, HOME=tmp_path / home, XDG_CACHE_HOME=given).assert_all_from_cache()


def test_where_nothing_can_be_written_kernels_work_all_the_same(tmp_path: Path) -> None:
    site = copy_package(tmp_path)
    (site / "cpu_attn" / "__pycache__").touch()
    report = run(site, HOME=NO_HOME)
    assert report.folder is None
    report.assert_nothing_from_cache()
    assert not any(report.is_kept)
    assert "NUMBA_CACHE_DIR may name a directory of your own" in report.errors
    run(site, HOME=NO_HOME).assert_nothing_from_cache()
    given = run(site, HOME=NO_HOME, NUMBA_CACHE_DIR=tmp_path / "cache")
    assert all(given.is_kept)
    assert given.errors == ""


def test_a_user_without_a_home(tmp_path: Path) -> None:
    site = copy_package(tmp_path)
    (site / "cpu_attn" / "__pycache__").touch()
    report = run(site, HOME="~")
    assert report.folder is None
    assert not (Path.cwd() / "~").exists()


def test_a_full_disk(site: Path, filled: Path, tmp_path: Path) -> None:
    """Nothing can be saved, what was saved before is used, and no rest is left behind."""
    run(site, *VARIANTS, largest_file=0, NUMBA_CACHE_DIR=filled).assert_all_from_cache()
    report = run(site, largest_file=100, NUMBA_CACHE_DIR=tmp_path / "empty")
    report.assert_nothing_from_cache()
    assert not any(report.is_kept)
    assert [path for path in (tmp_path / "empty").rglob("*") if path.is_file()] == []


@pytest.fixture
def read_only(filled: Path) -> Iterator[tuple[str, ...]]:
    """A command in whose eyes the filled cache cannot be written, whoever runs it."""
    mount = f"mount --bind '{filled}' '{filled}' && mount -o remount,ro,bind '{filled}'"
    command = ("unshare", "--mount", "sh", "-c", mount + ' && exec "$@"', "sh")
    try:
        can = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        can = False
    if not can:
        pytest.skip("this user may not mount")
    yield command


def test_a_cache_on_a_read_only_file_system(
    site: Path, filled: Path, read_only: tuple[str, ...]
) -> None:
    report = run(site, *VARIANTS, before=read_only, NUMBA_CACHE_DIR=filled)
    report.assert_all_from_cache()
    for kernel in kernels(filled, "merge.merge"):
        kernel.unlink()
    report = run(site, before=read_only, NUMBA_CACHE_DIR=filled)
    assert (report.from_cache, report.is_kept) == ([False], [False])
    assert report.errors == ""


def empty(kernel: Path) -> None:
    kernel.write_bytes(b"")


def truncate(kernel: Path) -> None:
    kernel.write_bytes(kernel.read_bytes()[:-1])


def halve(kernel: Path) -> None:
    kernel.write_bytes(kernel.read_bytes()[: kernel.stat().st_size // 2])


def flip_a_bit(kernel: Path) -> None:
    content = bytearray(kernel.read_bytes())
    content[len(content) // 2] ^= 1
    kernel.write_bytes(content)


def fill_with_noise(kernel: Path) -> None:
    kernel.write_bytes(b"\x80\x04noise" * 1000)


@pytest.mark.parametrize("damage", [empty, truncate, halve, flip_a_bit, fill_with_noise])
def test_a_damaged_file_is_compiled_again(
    site: Path, filled: Path, damage: Callable[[Path], None]
) -> None:
    (kernel,) = kernels(filled, "merge.merge")
    damage(kernel)
    report = run(site, NUMBA_CACHE_DIR=filled)
    assert (report.from_cache, report.is_kept) == ([False], [True])
    run(site, NUMBA_CACHE_DIR=filled).assert_all_from_cache()


def test_all_files_damaged(site: Path, filled: Path) -> None:
    for kernel in kernels(filled):
        truncate(kernel)
    report = run(site, "int8:float32:16", NUMBA_CACHE_DIR=filled)
    report.assert_nothing_from_cache()
    assert all(report.is_kept)


def test_a_directory_where_a_file_should_be(site: Path, filled: Path) -> None:
    (kernel,) = kernels(filled, "merge.merge")
    kernel.unlink()
    kernel.mkdir()
    report = run(site, NUMBA_CACHE_DIR=filled)
    assert (report.from_cache, report.is_kept) == ([False], [False])


def test_each_vector_path_has_a_folder_of_its_own(site: Path, filled: Path) -> None:
    folders = []
    for path in isa.available():
        report = run(site, NUMBA_CACHE_DIR=filled, OMNISERVE_CPU_ISA=path.name)
        assert report.from_cache == [path == isa.available()[0]]
        assert report.folder is not None
        assert f"kernels-{path.name}-" in report.folder
        folders.append(report.folder)
    assert len(set(folders)) == len(folders)


def test_other_sources_have_a_folder_of_their_own(filled: Path, tmp_path: Path) -> None:
    changed = copy_package(tmp_path / "changed")
    with (changed / "cpu_attn" / "row_append.py").open("a") as file:
        file.write("# changed\n")
    run(changed, NUMBA_CACHE_DIR=filled).assert_nothing_from_cache()
    assert len(list(filled.glob("kernels-*"))) == 2


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_not_used(site: Path, filled: Path, mode: int) -> None:
    (folder,) = filled.glob("kernels-*")
    folder.chmod(mode)
    report = run(site, NUMBA_CACHE_DIR=filled)
    assert report.folder is None
    assert report.from_cache == [False]
    (line,) = report.errors.splitlines()
    assert line.startswith("cpu_attn:0: RuntimeWarning: ")
    assert f"others may write to it (mode {mode:o}), which `chmod -R go-w` mends" in line
    assert line.endswith("NUMBA_CACHE_DIR may name another directory of your own")


def test_what_is_made_in_a_directory_for_all_is_ours_alone(site: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    run(site, NUMBA_CACHE_DIR=shared)
    run(site, NUMBA_CACHE_DIR=shared).assert_all_from_cache()
    for path in (*shared.iterdir(), *kernels(shared)):
        assert path.stat().st_mode & 0o022 == 0, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_folder_of_another_user_is_not_used(site: Path, filled: Path) -> None:
    (folder,) = filled.glob("kernels-*")
    os.chown(folder, 12345, 12345)
    report = run(site, NUMBA_CACHE_DIR=filled)
    assert report.folder is None
    assert "belongs to user 12345" in report.errors


def test_progress_is_told_before_and_after_each_kernel() -> None:
    variant = KernelVariant(Element.FLOAT32, Element.FLOAT32, 64)
    steps: list[WarmUpStep] = []
    results = warm_up([variant, variant], progress=steps.append)
    assert [result.variant for result in results] == [variant, None]
    assert [(step.number, step.total, step.name, step.done) for step in steps] == [
        (1, 2, "attention, float32 cache, float32 queries, head_dim 64", None),
        (1, 2, "attention, float32 cache, float32 queries, head_dim 64", results[0]),
        (2, 2, "merge of partial results", None),
        (2, 2, "merge of partial results", results[1]),
    ]
    again = warm_up(iter([variant]))
    assert [result.from_cache for result in again] == [True, True]


def test_what_progress_raises_ends_it() -> None:
    def refuse(_: WarmUpStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_up([], progress=refuse)


def test_what_is_no_variant_is_refused_before_anything_is_compiled() -> None:
    steps: list[WarmUpStep] = []
    wrong: list[KernelVariant] = ["bfloat16"]  # type: ignore[list-item]
    with pytest.raises(TypeError, match="'bfloat16' is not a KernelVariant"):
        warm_up(wrong, progress=steps.append)
    assert steps == []
