"""Kept cases of one target: a text file with one case to a line, in base64, the shortest first."""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from omniserve.atomic_file import write_text

DIRECTORY = Path(__file__).parent / "corpus"
MAX_CASES = 400
MAX_CASE_BYTES = 1024


def load_corpus(target: str) -> list[bytes]:
    """Empty where nothing was kept yet."""
    path = _path(target)
    lines = path.read_text().splitlines() if path.exists() else []
    return [base64.b64decode(line, validate=True) for line in lines]


def save_corpus(target: str, cases: Iterable[bytes]) -> int:
    """Keeps the shortest of the cases, each once; returns how many these are."""
    kept = sorted({case for case in cases if len(case) <= MAX_CASE_BYTES}, key=_order)[:MAX_CASES]
    text = "".join(f"{base64.b64encode(case).decode()}\n" for case in kept)
    DIRECTORY.mkdir(exist_ok=True)
    write_text(_path(target), text)
    return len(kept)


def unpack(cases: Iterable[bytes], directory: Path) -> None:
    """One file for each case, as fuzzers want them."""
    directory.mkdir(exist_ok=True)
    for case in cases:
        (directory / hashlib.sha256(case).hexdigest()[:16]).write_bytes(case)


def packed(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.iterdir()]


def _order(case: bytes) -> tuple[int, bytes]:
    return len(case), case


def _path(target: str) -> Path:
    return DIRECTORY / f"{target}.txt"
