"""Attention of one prefill chunk over keys and values that lie in order.

q is [num_tokens, num_heads, head_dim] for positions start .. start + num_tokens - 1; keys and
values are [num_kv_heads, start + num_tokens, head_dim]; the result is
[num_tokens, num_heads * head_dim].
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cpu_attn.element import Element

Window = int | None
ChunkAttention = Callable[[Tensor, Tensor, Tensor, int, Window], Tensor]


def chunk_attention_for(kv_cache: Tensor) -> ChunkAttention:
    """The faster of the two for this dtype on this machine."""
    if (
        kv_cache.device.type == "cpu"
        and kv_cache.dtype is torch.bfloat16
        and torch.cpu._is_avx512_bf16_supported()
    ):
        from omniserve.devices.openmp_team import OpenMpTeam
        from omniserve.devices.tiled_chunk import TiledChunkAttention

        return TiledChunkAttention(Element.BFLOAT16, OpenMpTeam())
    return sdpa_chunk


def sdpa_chunk(q: Tensor, keys: Tensor, values: Tensor, start: int, window: Window) -> Tensor:
    """torch's scaled_dot_product_attention: right for every device and dtype."""
    num_tokens = q.shape[0]
    is_causal = start == 0 and (window is None or window >= num_tokens)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=None if is_causal else _visible(num_tokens, start, window, q.device),
        is_causal=is_causal,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1).flatten(1)


@lru_cache(maxsize=8)
def _visible(num_tokens: int, start: int, window: Window, device: torch.device) -> Tensor:
    """Bool [num_tokens, start + num_tokens]: what each token sees, the same in all layers."""
    rows = torch.arange(start, start + num_tokens, device=device)[:, None]
    columns = torch.arange(start + num_tokens, device=device)
    visible = columns <= rows
    if window is not None:
        visible &= columns > rows - window
    return visible
