"""Where a checkpoint is written: a directory that appears whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omniserve.errors import CheckpointError

OWN_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja", "adapter_config.json"),
)
"""Names of a checkpoint's files, besides those of its weights."""


def check_replaceable(target: Path, force: bool) -> None:
    """Raises CheckpointError where `target` is there and may not be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; give a directory")
    names = sorted(os.listdir(target))
    if names and not force:
        raise CheckpointError(f"{target} is not empty; --force replaces a checkpoint that is there")
    # Only files of a checkpoint are deleted: a mistyped directory must not be lost.
    strangers = [name for name in names if not is_own_file(target / name)]
    if strangers:
        raise CheckpointError(
            f"{target} holds {strangers[0]!r}, which is not part of a checkpoint; "
            "nothing was replaced"
        )


def is_own_file(path: Path) -> bool:
    """Whether it is a file of a checkpoint, by its name."""
    if not path.is_file():
        return False
    weights = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
    return path.name in OWN_FILES or weights


@contextmanager
def replacing(target: Path, num_bytes: int) -> Iterator[Path]:
    """A new directory beside `target` that takes its place at the end, or is removed on failure."""
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        free = shutil.disk_usage(next(path for path in target.parents if path.exists())).free
        if free < num_bytes:
            raise CheckpointError(
                f"no space for {target}: {num_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
            )
        partial.mkdir(parents=True)
        yield partial
        _swap(partial, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
