"""What one thread keeps of each KV head while it works on an item, and where in its scratch."""

from typing import Any, NamedTuple

from cpu_attn._jit import compiled
from cpu_attn.kernel_task import TILE_TOKENS
from cpu_attn.tile_loops import SCORE_ROW_BYTES


class HeadMemory(NamedTuple):
    """Offsets in bytes from the start of a head's memory; rows are query tokens times heads."""

    q: int
    scores: int
    acc: int
    state: int
    """Running maximum and sum of each row, float32 both."""
    key_scales: int
    value_scales: int
    num_bytes: int


@compiled(None)
def head_memory(num_rows: Any, head_dim: Any) -> Any:
    row_bytes = 4 * head_dim
    scores = num_rows * row_bytes
    acc = scores + num_rows * SCORE_ROW_BYTES
    state = acc + num_rows * row_bytes
    key_scales = (state + 8 * num_rows + 63) // 64 * 64
    value_scales = key_scales + 4 * TILE_TOKENS
    num_bytes = value_scales + 4 * TILE_TOKENS
    return HeadMemory(
        q=0,
        scores=scores,
        acc=acc,
        state=state,
        key_scales=key_scales,
        value_scales=value_scales,
        num_bytes=num_bytes,
    )
