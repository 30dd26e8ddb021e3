"""Which layers simulated models have in common: as told, or by what their checkpoints hold."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from omniserve.checkpoint import CheckpointSummary, TensorInfo, inspect_checkpoint
from omniserve.errors import CheckpointError, ConfigError
from omniserve.profiling.profile import Profile
from omniserve.settings import ModelSettings

LayerKeys = Mapping[str, Sequence[str]]
"""By model: a key of each layer, equal where layers of several models are one."""

NONE_SHARED: LayerKeys = MappingProxyType({})
BY_CONTENT = "checkpoints"
"""In place of a list of models: whatever has the same bytes, as in an engine."""

_PIECE_BYTES = 8 << 20
_ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_NOT_OF_A_LAYER = frozenset(
    (
        *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"),
        *("num_hidden_layers", "max_window_layers", "vocab_size", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "max_position_embeddings"),
    )
)
"""Of config.json: what makes no layer another one."""


def layer_keys(
    told: Sequence[str], models: Sequence[ModelSettings], profiles: Mapping[str, Profile]
) -> LayerKeys:
    """From the values of --shared-layers: `checkpoints`, or `MODEL,MODEL[,MODEL]=LAYERS`, models
    with their first layers in common.

    Raises:
        ConfigError: a value is not as it has to be, or names what is not there.
        CheckpointError: a checkpoint cannot be read.
    """
    if BY_CONTENT not in told:
        return _keys_as_told(told, {name: each.num_layers for name, each in profiles.items()})
    if len(told) > 1:
        raise ConfigError(f"--shared-layers: {BY_CONTENT} stands for all models, and alone")
    keys = {model.name: _keys_by_content(model) for model in models}
    for name, of_model in keys.items():
        if len(of_model) != profiles[name].num_layers:
            raise ConfigError(
                f"--shared-layers {BY_CONTENT}: model {name} has {len(of_model)} layers, and its "
                f"profile {profiles[name].num_layers}"
            )
    return keys


def _keys_as_told(told: Iterable[str], num_layers: Mapping[str, int]) -> dict[str, list[str]]:
    keys = {name: [f"{name}/{index}" for index in range(num)] for name, num in num_layers.items()}
    for value in told:
        names, num_shared = _group(value, num_layers)
        for index in range(num_shared):
            # What either of them has in common with others already all have then.
            merged = {keys[name][index] for name in names}
            for of_model in keys.values():
                if index < len(of_model) and of_model[index] in merged:
                    of_model[index] = min(merged)
    return keys


def _group(value: str, num_layers: Mapping[str, int]) -> tuple[list[str], int]:
    listed, _, number = value.rpartition("=")
    names = listed.split(",")
    unknown = [name for name in names if name not in num_layers]
    if len(set(names)) < 2 or len(set(names)) < len(names) or unknown:
        raise ConfigError(
            f"--shared-layers {value!r}: must be {BY_CONTENT}, or MODEL,MODEL[,MODEL]=LAYERS with "
            f"models of {', '.join(num_layers)}"
        )
    most = min(num_layers[name] for name in names)
    if not (number.isascii() and number.isdigit() and len(number) < 6 and 1 <= int(number) <= most):
        raise ConfigError(f"--shared-layers {value!r}: allowed are 1 to {most} layers")
    return names, int(number)


def _keys_by_content(model: ModelSettings) -> list[str]:
    """All of its layers' weights are read."""
    checkpoint = inspect_checkpoint(model.checkpoint_path)
    shape = {key: value for key, value in checkpoint.config.items() if key not in _NOT_OF_A_LAYER}
    layer_types = shape.pop("layer_types", None)
    keys = []
    for index in range(checkpoint.config["num_hidden_layers"]):
        kind = layer_types[index] if isinstance(layer_types, list) else None
        settings = [checkpoint.architecture, model.dtype, shape, kind]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in _of_layer(checkpoint, index):
            if tensor.dtype not in _ELEMENT_BYTES:
                raise CheckpointError(f"{checkpoint.path}: {tensor.dtype} weights are not served")
            digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
            for piece in _pieces(checkpoint.path / tensor.file, tensor):
                digest.update(piece)
        keys.append(digest.hexdigest())
    return keys


def _of_layer(checkpoint: CheckpointSummary, index: int) -> list[tuple[str, TensorInfo]]:
    prefix = f"model.layers.{index}."
    return sorted(
        (name.removeprefix(prefix), tensor)
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    )


def _pieces(path: Path, tensor: TensorInfo) -> Iterable[bytes]:
    num_left = tensor.num_elements * _ELEMENT_BYTES[tensor.dtype]
    try:
        with path.open("rb") as file:
            file.seek(tensor.start)
            while num_left:
                piece = file.read(min(num_left, _PIECE_BYTES))
                if not piece:
                    raise CheckpointError(f"{path}: truncated while it was read")
                num_left -= len(piece)
                yield piece
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
