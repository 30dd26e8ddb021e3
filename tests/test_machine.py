"""Cores and memory, with the limits of control groups."""

import os
from pathlib import Path

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
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       900 kB\nMemAvailable:   7 kB\nHugePages_Total:       0\n")
    assert available_bytes(told) == 7 << 10
