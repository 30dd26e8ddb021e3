"""Rotary position embedding from a table that is computed once."""

from typing import Any

import torch
from torch import Tensor

from omniserve.errors import CheckpointError
from omniserve.models.weight_store import ModelWeights

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic")


class RotaryTable:
    """cos and sin of every position, in the model's dtype.

    `cos` and `signed_sin` are [max_positions, 1, head_dim]; the first half of `signed_sin` is
    negated, so that rotation is two multiplications and one swap of halves. Within
    `max_position_embeddings` the frequencies of every supported type are fixed ("dynamic" only
    rescales beyond it), hence the table.
    """

    def __init__(
        self, rotary_emb: Any, max_positions: int, dtype: torch.dtype, weights: ModelWeights
    ) -> None:
        """`weights` keeps it: models with the same positions share it."""
        device = weights.device
        rotary_emb = rotary_emb.to(device)
        like = torch.zeros(1, dtype=dtype, device=device)
        positions = torch.arange(max_positions, device=device)[None]
        cos, sin = rotary_emb(like, positions)
        half = cos.shape[-1] // 2
        signed_sin = torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], dim=-1)
        self._cos = weights.tensor(cos[0, :, None])
        self._signed_sin = weights.tensor(signed_sin)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin of `positions` [rows]: two tensors [rows, 1, head_dim]."""
        return self._cos[positions], self._signed_sin[positions]


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotates x [rows, heads, head_dim] in the layout of Llama (halves, not pairs)."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), signed_sin)


def check_rope(config: object) -> None:
    """Raises CheckpointError for a rope type whose frequencies are not a fixed table."""
    parameters = getattr(config, "rope_parameters", None) or {}
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise CheckpointError(
            f"config.json: rope_type {rope_type!r} is not supported; "
            f"supported: {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
