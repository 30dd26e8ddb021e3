"""From a checkpoint directory to a model whose layers can be run."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omniserve.adapter_checkpoint import AdapterSummary, inspect_adapter
from omniserve.checkpoint import inspect_checkpoint
from omniserve.errors import CheckpointError
from omniserve.models.adapter_loading import adapter_bytes, read_deltas
from omniserve.models.decoder import DecoderModel, ModelParts
from omniserve.models.families import family_of
from omniserve.models.kept_weights import RecalledWeights
from omniserve.models.lora import LayerDelta
from omniserve.models.rotary import check_rope
from omniserve.models.row_ops import RowOps
from omniserve.models.weight_files import WeightFiles
from omniserve.models.weight_map import WeightMap
from omniserve.models.weight_store import ModelWeights

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

BytesRead = Callable[[int, int], None]
"""Told, again and again, how many bytes of how many are read; ends the load where it raises."""

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_MOST_DELTA_BYTES = 4
"""Of a number of an adapter's, in memory."""


def load_config(path: Path) -> Any:
    """The transformers config of a checkpoint, checked to be one that we can serve."""
    from transformers import AutoConfig

    inspect_checkpoint(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises whatever its config classes raise
        raise CheckpointError(f"{path / 'config.json'}: {error}") from error
    family_of(config)
    check_rope(config)
    return config


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model whose weights fit its configuration, and have still to be read."""

    path: Path
    config: Any
    module: Any
    """transformers' own, on the meta device."""
    weights: WeightMap
    files: tuple[str, ...]
    """Names of those that say what it computes."""
    adapter: AdapterSummary | None = None
    """What is added to the model, where it is the base of one."""

    def key(self) -> Hashable:
        """Of its files as they are now: another one once any of them was written to or replaced;
        None where they cannot be looked at."""
        try:
            found = [(self.path / name).stat() for name in self.files]
        except OSError:
            return None
        return tuple(
            (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns)
            for each in found
        )

    @property
    def num_adapter_parameters(self) -> int:
        return 0 if self.adapter is None else self.adapter.files.num_parameters

    def memory_bytes(self, dtype: torch.dtype, packed: bool) -> int:
        """That the weights will take where they are computed with."""
        parameters = int(self.module.num_parameters())
        if packed and _is_tied(self.config):
            # A packed head is a copy of the embedding.
            parameters += self.module.model.embed_tokens.weight.numel()
        return parameters * dtype.itemsize + self.num_adapter_parameters * _MOST_DELTA_BYTES


def open_model(path: Path, config: Any, adapter: Path | None = None) -> OpenedModel:
    """Compares headers and configuration; reads no weight and allocates next to nothing.

    Raises:
        CheckpointError: a weight is missing, unexpected, or of another shape than the config says,
            or the adapter is not one of this model.
    """
    summary = None if adapter is None else inspect_adapter(adapter, path)
    module = _empty_module(path, config)
    tied = frozenset({_HEAD}) if _is_tied(config) else frozenset()
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    tensors = inspect_checkpoint(path).tensors
    try:
        weights = WeightMap(tensors, shapes, tied)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    files = {"config.json", *(tensor.file for tensor in tensors.values())}
    return OpenedModel(path, config, module, weights, tuple(sorted(files)), summary)


def read_model(
    opened: OpenedModel,
    weights: ModelWeights,
    dtype: torch.dtype,
    max_model_len: int,
    row_ops: RowOps,
    on_read: BytesRead = lambda done, total: None,
) -> DecoderModel:
    """Reads the weights and has `weights` lay them out for its device, a layer at a time.

    Beside the model itself, host memory for about one layer, or for the output head, is needed
    meanwhile; for an accelerator that of the embedding too. Of an adapter whose base was read
    already, for any model that is here, only its own file is read. May be called in any thread.
    What was opened is used up.

    Raises:
        CheckpointError: a file cannot be read.
    """
    key = (opened.key(), dtype, weights.device, weights.packed, type(row_ops))
    # The layers, and all that belongs to them, of a base that is here already.
    parts = None if opened.adapter is None else weights.store.parts.get(key)
    total = opened.weights.file_bytes if parts is None else 0
    total += 0 if opened.adapter is None else adapter_bytes(opened.adapter)
    done = 0

    def note(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_read(done, total)

    on_read(0, total)
    deltas: list[LayerDelta | None] = []
    if opened.adapter is not None:
        # First, so that what is wrong with it shows before all of its base is read.
        deltas = read_deltas(opened.adapter, weights, dtype, note)
    with torch.inference_mode(), WeightFiles(opened.path, note) as files:
        module = _Filled(opened, files, dtype)
        try:
            if parts is None:
                parts = ModelParts.of(module, weights, row_ops)
                if key[0] is not None and opened.key() == key[0]:
                    parts = weights.store.parts.setdefault(key, parts)
            else:
                weights.hold(parts.held)
            family = family_of(opened.config)
            return DecoderModel(module, parts, family, max_model_len, weights, row_ops, deltas)
        finally:
            module.empty()


def recall_model(
    opened: OpenedModel, weights: RecalledWeights, max_model_len: int, row_ops: RowOps
) -> DecoderModel:
    """A model whose weights were kept while it slept; no file is read. As `read_model` otherwise.

    The model is no adapter.
    """
    assert opened.adapter is None
    with torch.inference_mode():
        module, family = _Unfilled(opened, weights), family_of(opened.config)
        parts = ModelParts.of(module, weights, row_ops)
        model = DecoderModel(module, parts, family, max_model_len, weights, row_ops)
    weights.release()
    return model


class _Unfilled:
    """A module as `DecoderModel` takes it apart, whose parameters are nowhere."""

    def __init__(self, opened: OpenedModel, weights: RecalledWeights) -> None:
        self._module = opened.module
        self.config = opened.config
        self.model = opened.module.model
        self.model.rotary_emb = _rotary_of(opened)
        if weights.recalls_tied_head:
            self._module.lm_head.weight = self.model.embed_tokens.weight
        else:
            shape = self._module.lm_head.weight
            self._module.lm_head.weight = torch.nn.Parameter(shape.detach(), requires_grad=False)

    def num_parameters(self) -> int:
        return int(self._module.num_parameters())

    @property
    def lm_head(self) -> Any:
        return self._module.lm_head


def _rotary_of(opened: OpenedModel) -> Any:
    """It has no weights: it is computed anew."""
    with torch.device("cpu"):
        return type(opened.module.model.rotary_emb)(opened.config)


class _Filled:
    """A module as `DecoderModel` takes it apart: what it looks at is filled just before.

    In host memory, also for an accelerator: what another model has there already stays here.
    """

    def __init__(self, opened: OpenedModel, files: WeightFiles, dtype: torch.dtype) -> None:
        self._opened = opened
        self._module = opened.module
        self._num_parameters = int(opened.module.num_parameters()) + opened.num_adapter_parameters
        self._files = files
        self._dtype = dtype
        self.config = opened.config
        self.model = _FilledBody(self)

    def num_parameters(self) -> int:
        """Also when it is taken apart."""
        return self._num_parameters

    @property
    def body(self) -> Any:
        return self._module.model

    @property
    def lm_head(self) -> Any:
        head, embedding = self._module.lm_head, self.model.embed_tokens
        if not head.weight.is_meta:
            return head
        if not _is_tied(self.config):
            return self.fill(head, "lm_head.")
        if _HEAD not in self._opened.weights:
            head.weight = embedding.weight
            return head
        # Stored although it is tied: then it counts where it differs.
        head.weight = torch.nn.Parameter(head.weight.detach(), requires_grad=False)
        self.fill(head, "lm_head.")
        if torch.equal(head.weight, embedding.weight):
            head.weight = embedding.weight
        return head

    def fill(self, module: Any, prefix: str) -> Any:
        """Gives every parameter of a module, where it has none yet, what the checkpoint holds."""
        for name, parameter in list(module.named_parameters()):
            if not parameter.is_meta:
                continue
            value = torch.empty(parameter.shape, dtype=self._dtype)
            self._opened.weights.read(prefix + name, self._files, value)
            owner_name, _, own_name = name.rpartition(".")
            owner = module.get_submodule(owner_name)
            setattr(owner, own_name, torch.nn.Parameter(value, requires_grad=False))
        return module

    def rotary(self) -> Any:
        return _rotary_of(self._opened)

    def empty(self) -> None:
        """Lets go of what it filled. Modules of transformers refer to themselves: a weight that
        they had would stay in memory until Python looks for such garbage."""
        body, nothing = self.body, torch.nn.Identity()
        body.embed_tokens = body.norm = self._module.lm_head = nothing


class _FilledBody:
    def __init__(self, owner: _Filled) -> None:
        self._owner = owner

    @property
    def embed_tokens(self) -> Any:
        return self._owner.fill(self._owner.body.embed_tokens, "model.embed_tokens.")

    @property
    def norm(self) -> Any:
        return self._owner.fill(self._owner.body.norm, "model.norm.")

    @property
    def rotary_emb(self) -> Any:
        return self._owner.rotary()

    @property
    def layers(self) -> Iterator[Any]:
        """One after the other: the adapter of a layer releases what the next one needs."""
        layers = self._owner.body.layers
        for index in range(len(layers)):
            layer = self._owner.fill(layers[index], f"model.layers.{index}.")
            layers[index] = torch.nn.Identity()
            yield layer


def _is_tied(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _empty_module(path: Path, config: Any) -> Any:
    import transformers

    # Not from_config: it changes torch's default dtype, for other threads too, while it works.
    kind = getattr(transformers, family_of(config).architecture)
    try:
        with torch.device("meta"):
            module = kind(config)
    except Exception as error:  # transformers raises whatever its modules raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot load the weights: {reason}") from error
    return module.eval()
