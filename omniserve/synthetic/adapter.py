"""A LoRA adapter of a checkpoint with random deltas, in PEFT's format."""

import json
import os
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from omniserve.adapter_checkpoint import PROJECTIONS, WEIGHTS_NAME, served_modules
from omniserve.adapter_config import CONFIG_NAME
from omniserve.checkpoint import inspect_checkpoint
from omniserve.errors import CheckpointError
from omniserve.synthetic.layout import TensorSpec
from omniserve.synthetic.target_directory import check_replaceable, replacing
from omniserve.synthetic.weights import Progress, weight_bytes, write_file

CHANGE = 0.3
"""Root mean square of what is added to a weight, where the base's weights are as ours are made."""
MAX_RANK = 1024
_CONFIG_BYTES = 1 << 16
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def write_adapter(
    base: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    rank: int = 8,
    seed: int = 0,
    targets: Sequence[str] = PROJECTIONS,
    force: bool = False,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write an adapter of `base` to `directory`, which is absent or empty, and return its path.

    It changes these projections in every layer that has them dense; alpha is twice the rank. Every
    value depends on `seed` and the tensor's name alone. CheckpointError where something stands
    in the way; then nothing has changed.
    """
    if not 1 <= rank <= MAX_RANK:
        raise CheckpointError(f"rank {rank}: use 1 to {MAX_RANK}")
    if seed < 0:
        raise CheckpointError(f"seed {seed}: use 0 or more")
    unknown = [name for name in targets if name not in PROJECTIONS]
    if unknown or not targets:
        what = repr(unknown[0]) if unknown else "nothing"
        raise CheckpointError(f"targets: {what}: use some of {', '.join(PROJECTIONS)}")
    summary = inspect_checkpoint(base)
    target = Path(directory).resolve()
    if target == summary.path.resolve():
        raise CheckpointError(f"{target} is the base itself; give another directory")
    check_replaceable(target, force)
    modules = {
        name: shape
        for name, shape in served_modules(summary).items()
        if name.rpartition(".")[2] in targets
    }
    if not modules:
        raise CheckpointError(f"{summary.path}: has none of {', '.join(targets)} in dense layers")
    specs = [spec for name, shape in modules.items() for spec in _pair(name, shape, rank)]
    dtype = _DTYPES.get(summary.tensors["model.embed_tokens.weight"].dtype, "float32")
    total = weight_bytes(specs, dtype)
    with replacing(target, total + _CONFIG_BYTES) as partial:
        config = _config(summary.path, rank, sorted({name.rpartition(".")[2] for name in modules}))
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for written in write_file(partial / WEIGHTS_NAME, specs, dtype, f"adapter {seed}"):
            progress(written, total)
    return target


def _pair(module: str, shape: tuple[int, ...], rank: int) -> tuple[TensorSpec, TensorSpec]:
    """A and B so that alpha / rank * B A, with alpha twice the rank, is as large as CHANGE says
    beside weights of size 1 / sqrt(in_features)."""
    out_features, in_features = shape
    name = f"base_model.model.{module}.lora_"
    return (
        TensorSpec(f"{name}A.weight", (rank, in_features), 1 / sqrt(in_features)),
        TensorSpec(f"{name}B.weight", (out_features, rank), CHANGE / (2 * sqrt(rank))),
    )


def _config(base: Path, rank: int, targets: list[str]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }
