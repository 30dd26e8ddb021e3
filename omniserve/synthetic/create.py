"""Write a whole synthetic checkpoint, or nothing."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omniserve.errors import CheckpointError
from omniserve.synthetic.layout import tensor_specs
from omniserve.synthetic.model_config import generation_config, model_config
from omniserve.synthetic.presets import ARCHITECTURES, DTYPES, PRESETS, ModelShape, shape_of
from omniserve.synthetic.tokenizer import write_tokenizer
from omniserve.synthetic.weights import Progress, weight_bytes, write_weights

_TOKENIZER_BYTES = 16 << 20
_OWN_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def write_checkpoint(
    directory: str | os.PathLike[str],
    *,
    arch: str,
    preset: str,
    dtype: str = "float32",
    seed: int = 0,
    vocab_size: int | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write a checkpoint to `directory`, which is absent or empty, and return its path.

    `overrides` replace keys of config.json, and the weights follow them. With `force` a checkpoint
    that is there already is replaced. CheckpointError where something stands in the way; then
    nothing has changed.
    """
    shape = _resolve_shape(arch, preset, dtype, seed, vocab_size)
    config = model_config(arch, shape, dtype, overrides)
    specs = list(tensor_specs(config))
    target = Path(directory).resolve()
    _check_replaceable(target, force)
    with _replacing(target, weight_bytes(specs, dtype) + _TOKENIZER_BYTES) as partial:
        _write_json(partial / "config.json", config)
        _write_json(partial / "generation_config.json", generation_config())
        write_tokenizer(partial, shape.tokenizer_size, config["vocab_size"], shape.max_positions)
        write_weights(partial, specs, dtype, f"{arch} {seed}", progress)
    return target


def _resolve_shape(
    arch: str, preset: str, dtype: str, seed: int, vocab_size: int | None
) -> ModelShape:
    for field, value, allowed in (
        ("arch", arch, tuple(ARCHITECTURES)),
        ("preset", preset, PRESETS),
        ("dtype", dtype, DTYPES),
    ):
        if value not in allowed:
            raise CheckpointError(f"{field} {value!r}: use one of {', '.join(allowed)}")
    if seed < 0:
        raise CheckpointError(f"seed {seed}: use 0 or more")
    shape = shape_of(preset, arch)
    if vocab_size is None:
        return shape
    if vocab_size < shape.tokenizer_size:
        raise CheckpointError(
            f"vocab_size {vocab_size}: the tokenizer of preset {preset} has "
            f"{shape.tokenizer_size} tokens; use {shape.tokenizer_size} or more"
        )
    return replace(shape, vocab_size=vocab_size)


def _check_replaceable(target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; give a directory")
    names = sorted(os.listdir(target))
    if names and not force:
        raise CheckpointError(f"{target} is not empty; --force replaces a checkpoint that is there")
    # Only files of a checkpoint are deleted: a mistyped directory must not be lost.
    strangers = [name for name in names if not _is_own_file(target / name)]
    if strangers:
        raise CheckpointError(
            f"{target} holds {strangers[0]!r}, which is not part of a checkpoint; "
            "nothing was replaced"
        )


def _is_own_file(path: Path) -> bool:
    if not path.is_file():
        return False
    weights = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
    return path.name in _OWN_FILES or weights


@contextmanager
def _replacing(target: Path, num_bytes: int) -> Iterator[Path]:
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
