"""Write a whole synthetic checkpoint, or nothing."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from omniserve.errors import CheckpointError
from omniserve.synthetic.layout import tensor_specs
from omniserve.synthetic.model_config import generation_config, model_config
from omniserve.synthetic.presets import ARCHITECTURES, DTYPES, PRESETS, ModelShape, shape_of
from omniserve.synthetic.target_directory import check_replaceable, replacing
from omniserve.synthetic.tokenizer import write_tokenizer
from omniserve.synthetic.weights import Progress, weight_bytes, write_weights

_TOKENIZER_BYTES = 16 << 20


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
    check_replaceable(target, force)
    with replacing(target, weight_bytes(specs, dtype) + _TOKENIZER_BYTES) as partial:
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
