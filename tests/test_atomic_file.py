"""Files are replaced at once or left alone."""

import os
import stat
from pathlib import Path

import pytest

from omniserve.atomic_file import write_text


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.mkdir()
    with pytest.raises(OSError):
        write_text(path, "new")
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_as_open_as_others(tmp_path: Path) -> None:
    ordinary, written = tmp_path / "ordinary", tmp_path / "written"
    ordinary.touch()
    write_text(written, "größer")
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (ordinary, written)]
    assert modes[0] == modes[1]
    assert written.read_bytes() == "größer".encode()
