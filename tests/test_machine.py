"""Cores and memory, with the limits of control groups."""

import os
from pathlib import Path

import pytest

from omniserve.machine import this_machine
from omniserve.memory_limit import available_bytes, memory_limit_bytes


def make_groups(directory: Path, own: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """The process's list of groups, and their tree with the given memory.max files."""
    listed = directory / "cgroup"
    listed.write_text(f"1:name=other:/elsewhere\n0::{own}\n")
    root = directory / "tree"
    for group, text in limits.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / "memory.max").write_text(text)
    return listed, root


def set_used(root: Path, used: dict[str, tuple[int, int]]) -> None:
    """Bytes that groups have, and of them those of files; an eighth of these are in use."""
    for group, (num_bytes, num_file_bytes) in used.items():
        (root / group / "memory.current").write_text(f"{num_bytes}\n")
        active = num_file_bytes // 8
        text = f"anon 5\ninactive_file {num_file_bytes - active}\nactive_file {active}\n"
        (root / group / "memory.stat").write_text(text)


def make_meminfo(directory: Path, available_kb: int) -> Path:
    told = directory / "meminfo"
    lines = ("MemTotal:  900 kB", f"MemAvailable:   {available_kb} kB", "HugePages_Total:   0")
    told.write_text("\n".join(lines))
    return told


def test_this_machine_is_what_the_process_may_use() -> None:
    machine = this_machine()
    assert machine.num_cores == len(os.sched_getaffinity(0))
    assert 0 < machine.available_bytes <= machine.memory_bytes
    page_bytes, num_pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    assert machine.memory_bytes <= page_bytes * num_pages


def test_the_lowest_limit_around_a_process_counts(tmp_path: Path) -> None:
    limits = {"a/b": "max\n", "a": "1000\n", ".": "2000\n", "a/other": "1\n"}
    assert memory_limit_bytes(*make_groups(tmp_path, "/a/b", limits)) == 1000


def test_in_a_container_the_root_is_its_own_group(tmp_path: Path) -> None:
    assert memory_limit_bytes(*make_groups(tmp_path, "/", {".": "77\n"})) == 77
    assert memory_limit_bytes(*make_groups(tmp_path, "/not/seen/here", {".": "77\n"})) == 77


def test_no_limit(tmp_path: Path) -> None:
    assert memory_limit_bytes(*make_groups(tmp_path, "/a", {"a": "max\n"})) is None
    assert memory_limit_bytes(tmp_path / "missing", tmp_path) is None


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    told = make_meminfo(tmp_path, 7)
    assert available_bytes(told, *make_groups(tmp_path, "/a", {"a": "max\n"})) == 7 << 10
    assert available_bytes(told, tmp_path / "missing", tmp_path) == 7 << 10


def test_what_a_group_has_already_is_not_available(tmp_path: Path) -> None:
    """On a machine with 256 GiB: of a limit of 16 GiB 14 are used, half a GiB by file pages."""
    told = make_meminfo(tmp_path, 256 << 20)
    gib, half_gib = 1 << 30, 1 << 29
    groups = make_groups(tmp_path, "/a/b", {"a/b": "max\n", "a": f"{16 * gib}\n"})
    set_used(groups[1], {"a/b": (3 * gib, 0), "a": (14 * gib, half_gib)})
    assert available_bytes(told, *groups) == 2 * gib + half_gib
    assert memory_limit_bytes(*groups) == 16 * gib


def test_the_group_with_the_least_room_counts_not_the_one_with_the_lowest_limit(
    tmp_path: Path,
) -> None:
    told = make_meminfo(tmp_path, 900)
    groups = make_groups(tmp_path, "/a", {"a": "1000\n", ".": "2000\n"})
    set_used(groups[1], {"a": (100, 0), ".": (1900, 0)})
    assert (available_bytes(told, *groups), memory_limit_bytes(*groups)) == (100, 1000)


@pytest.mark.parametrize(
    ("used", "available"), [((1200, 0), 0), ((1100, 400), 300), ((100, 400), 1000)]
)
def test_room_is_never_negative_nor_beyond_the_limit(
    tmp_path: Path, used: tuple[int, int], available: int
) -> None:
    told = make_meminfo(tmp_path, 900)
    groups = make_groups(tmp_path, "/", {".": "1000\n"})
    set_used(groups[1], {".": used})
    assert available_bytes(told, *groups) == available


def test_a_group_without_books_has_its_limit(tmp_path: Path) -> None:
    told = make_meminfo(tmp_path, 900)
    assert available_bytes(told, *make_groups(tmp_path, "/a", {"a": "1000\n"})) == 1000
