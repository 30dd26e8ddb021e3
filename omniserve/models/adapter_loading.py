"""From the files of an adapter to what it adds to each layer of its base."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from omniserve.adapter_checkpoint import (
    WEIGHTS_NAME,
    AdaptedProjection,
    AdapterSummary,
)
from omniserve.checkpoint import TensorInfo
from omniserve.errors import CheckpointError
from omniserve.models.lora import DeltaPart, LayerDelta, LinearDelta, delta_dtype
from omniserve.models.weight_files import FILE_DTYPES, WeightFiles
from omniserve.models.weight_store import ModelWeights

_FUSED = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Fields of `LayerDelta`, and whose outputs the layer's linear has side by side."""


def adapter_bytes(adapter: AdapterSummary) -> int:
    """That are to be read of its file."""
    return sum(
        tensor.num_elements * FILE_DTYPES[tensor.dtype].itemsize
        for pair in adapter.files.pairs.values()
        for tensor in (pair.down, pair.up)
    )


def read_deltas(
    adapter: AdapterSummary,
    weights: ModelWeights,
    dtype: torch.dtype,
    on_read: Callable[[int], None],
) -> list[LayerDelta | None]:
    """What the adapter adds, by layer of its base; `weights` keeps it. `dtype` is the model's.

    Raises:
        CheckpointError: the file cannot be read, or holds values that are not finite.
    """
    num_layers = adapter.base.config["num_hidden_layers"]
    with torch.inference_mode(), WeightFiles(adapter.files.path, on_read) as files:
        reader = _Reader(adapter, weights, delta_dtype(weights.device, dtype), files)
        return [reader.layer(index) for index in range(num_layers)]


class _Reader:
    def __init__(
        self,
        adapter: AdapterSummary,
        weights: ModelWeights,
        dtype: torch.dtype,
        files: WeightFiles,
    ) -> None:
        self._adapter = adapter
        self._weights = weights
        self._dtype = dtype
        self._files = files

    def layer(self, index: int) -> LayerDelta | None:
        changed = self._adapter.layers.get(index)
        if not changed:
            return None
        linears = {
            field: self._linear(index, names, changed)
            for field, names in _FUSED.items()
            if any(name in changed for name in names)
        }
        return LayerDelta(**linears)

    def _linear(
        self, layer: int, names: tuple[str, ...], changed: Mapping[str, AdaptedProjection]
    ) -> LinearDelta:
        downs, parts = [], []
        first_output = first_rank = 0
        for name in names:
            num_outputs = self._adapter.out_features(layer, name)
            if name in changed:
                pair = changed[name].pair
                downs.append(self._read(pair.down, layer, name))
                parts.append(
                    DeltaPart(
                        slice(first_output, first_output + num_outputs),
                        slice(first_rank, first_rank + pair.rank),
                        self._weights.tensor(self._read(pair.up, layer, name)),
                        changed[name].scale,
                    )
                )
                first_rank += pair.rank
            first_output += num_outputs
        return LinearDelta(self._weights.tensor(torch.cat(downs)), parts)

    def _read(self, tensor: TensorInfo, layer: int, projection: str) -> Tensor:
        value = torch.empty(tensor.shape, dtype=self._dtype)
        self._files.read(tensor, value)
        if not value.isfinite().all():
            raise CheckpointError(
                f"{self._adapter.files.path / WEIGHTS_NAME}: {projection} of layer {layer} has "
                f"values that are not finite as {self._dtype}".replace("torch.", "")
            )
        return value
