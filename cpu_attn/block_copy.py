"""Copies of whole KV blocks between a cache that lies by layer and one that lies by block.

The first is int64 [num_layers, num_blocks, words], the second int64 [num_blocks, num_layers,
words], both C-contiguous; ids are int64 [n], within them. One call a request: a thread that came
back to the interpreter between blocks would have to wait for its lock each time.
"""

from typing import Any

from numba import types

from cpu_attn._jit import compiled

_cache, _ids = types.int64[:, :, ::1], types.int64[::1]
_SIGNATURE = types.void(_cache, _ids, _cache, _ids)


@compiled(_SIGNATURE)
def copy_to_block_major(by_layer: Any, layer_ids: Any, by_block: Any, block_ids: Any) -> None:
    """Block `layer_ids[i]` of the first goes to block `block_ids[i]` of the second."""
    for index in range(layer_ids.shape[0]):
        source, target = layer_ids[index], block_ids[index]
        for layer in range(by_layer.shape[0]):
            for word in range(by_layer.shape[2]):
                by_block[target, layer, word] = by_layer[layer, source, word]


@compiled(_SIGNATURE)
def copy_to_layer_major(by_layer: Any, layer_ids: Any, by_block: Any, block_ids: Any) -> None:
    """The way back: block `block_ids[i]` of the second goes to block `layer_ids[i]`."""
    for index in range(layer_ids.shape[0]):
        target, source = layer_ids[index], block_ids[index]
        for layer in range(by_layer.shape[0]):
            for word in range(by_layer.shape[2]):
                by_layer[layer, target, word] = by_block[source, layer, word]
