"""Placeholder until the real module arrives."""
from pathlib import Path


def inspect_checkpoint(path: Path) -> None:
    pass
