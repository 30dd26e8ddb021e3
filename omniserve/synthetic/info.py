"""What `omniserve model info` says of a checkpoint, from its config and safetensors headers."""

import os
from dataclasses import dataclass

from omniserve.checkpoint import CheckpointSummary, inspect_checkpoint

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Sizes of a model on disk and in the KV pool."""

    architecture: str
    dtype: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    vocab_size: int
    max_positions: int
    kv_bytes_per_token: int
    """Keys and values of one token in every layer, at the dtype of the checkpoint."""
    weight_bytes: int


def model_report(directory: str | os.PathLike[str]) -> ModelReport:
    """Inspect a checkpoint; CheckpointError where it is missing or broken."""
    summary = inspect_checkpoint(directory)
    config = summary.config
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    dtype = _weights_dtype(summary)
    per_layer = 2 * num_kv_heads * head_dim * _DTYPE_BYTES.get(dtype, 4)
    files = {tensor.file for tensor in summary.tensors.values()}
    return ModelReport(
        architecture=summary.architecture,
        dtype=dtype,
        num_parameters=summary.num_parameters,
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_experts=config.get("num_experts") or config.get("num_local_experts") or 0,
        vocab_size=config["vocab_size"],
        max_positions=config.get("max_position_embeddings", 0),
        kv_bytes_per_token=config["num_hidden_layers"] * per_layer,
        weight_bytes=sum((summary.path / file).stat().st_size for file in files),
    )


def _weights_dtype(summary: CheckpointSummary) -> str:
    stored = summary.tensors["model.embed_tokens.weight"].dtype
    return _DTYPE_NAMES.get(stored, stored)


def describe(report: ModelReport) -> str:
    """The report as lines of text, one figure each."""
    heads = f"{report.num_heads} query, {report.num_kv_heads} KV, of {report.head_dim}"
    experts = f"{report.num_experts}" if report.num_experts else "none (dense)"
    rows = (
        ("architecture", report.architecture),
        ("dtype", report.dtype),
        ("parameters", f"{report.num_parameters:,}"),
        ("layers", f"{report.num_layers}"),
        ("hidden size", f"{report.hidden_size}"),
        ("heads", heads),
        ("experts", experts),
        ("vocabulary", f"{report.vocab_size:,}"),
        ("positions", f"{report.max_positions:,}"),
        ("KV bytes per token", f"{report.kv_bytes_per_token:,}"),
        ("weights on disk", f"{report.weight_bytes / (1 << 20):,.1f} MiB"),
    )
    return "\n".join(f"{label:<20}{value}" for label, value in rows)
