"""What a Hugging Face checkpoint directory holds, read from config.json and safetensors headers.

Needs neither torch nor transformers, so that a broken checkpoint is refused before they load.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omniserve.errors import CheckpointError
from omniserve.regular_file import read_small_file

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
)

_MAX_HEADER_BYTES = 100 << 20
_INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_DIMENSIONS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MAX_NAME_CHARS = 255
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Of element types as safetensors spells them; others may come."""
_OPTIONAL_DIMENSIONS = ("num_key_value_heads", "head_dim", "max_position_embeddings")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its shard's header describes it."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: F32, BF16, F16, I64 ..."""
    file: str
    start: int = 0
    """Of its first byte in that file."""

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """A checkpoint that can be loaded, as far as headers and file sizes can tell."""

    path: Path
    architecture: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors.values())


def inspect_checkpoint(path: str | os.PathLike[str]) -> CheckpointSummary:
    """Check a checkpoint directory without reading its weights.

    CheckpointError, with one line that names the file, where it is missing, broken, truncated,
    incomplete or of an architecture that is not supported.
    """
    directory = Path(path)
    require_directory(directory)
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory}: holds an adapter, not a model; `base` of the entry has to name the "
            "checkpoint of its base"
        )
    config = read_json(directory / "config.json")
    architecture = _check_config(directory / "config.json", config)
    tensors = _read_tensors(directory)
    _check_complete(directory, config, tensors)
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(f"{directory}: tokenizer.json is missing")
    _check_generation_config(directory / "generation_config.json")
    return CheckpointSummary(
        directory, architecture, MappingProxyType(config), MappingProxyType(tensors)
    )


def require_directory(directory: Path) -> None:
    """Raises CheckpointError."""
    try:
        if not directory.exists():
            raise CheckpointError(f"{directory}: no such directory")
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: not a directory")
    except OSError as error:
        # A name that is too long, say.
        raise CheckpointError(f"{str(directory):.200}: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; CheckpointError where it holds none."""
    try:
        content = json.loads(read_small_file(path).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a JSON object")
    return content


def _check_config(path: Path, config: dict[str, Any]) -> str:
    """The architecture that config.json names, if it can be served."""
    supported = ", ".join(SUPPORTED_ARCHITECTURES)
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        raise CheckpointError(f"{path}: names no architectures; supported: {supported}")
    if named[0] not in SUPPORTED_ARCHITECTURES:
        raise CheckpointError(
            f"{path}: architecture {named[0]!r} is not supported; supported: {supported}"
        )
    if config.get("quantization_config"):
        raise CheckpointError(f"{path}: quantization_config: quantized weights are not supported")
    given = [key for key in _OPTIONAL_DIMENSIONS if config.get(key) is not None]
    for key in (*_DIMENSIONS, *given):
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{path}: {key} is {value!r}, not a whole number above 0")
    return str(named[0])


def _check_generation_config(path: Path) -> None:
    """Where there is one it has to name end-of-sequence tokens as the engine reads them."""
    if not path.exists():
        return
    eos = read_json(path).get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(is_token_id(each) for each in ids):
        problem = f"eos_token_id is {eos!r:.80}, not a token id or a list of them"
        raise CheckpointError(f"{path}: {problem}")


def is_token_id(value: object) -> bool:
    """As configurations name tokens: -1 is none."""
    return type(value) is int and -1 <= value < 1 << 31


def _read_tensors(directory: Path) -> dict[str, TensorInfo]:
    if (directory / _INDEX_NAME).is_file():
        return _read_sharded(directory)
    if (directory / _SINGLE_NAME).is_file():
        return read_header(directory / _SINGLE_NAME)
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    if pickled:
        raise CheckpointError(
            f"{directory}: {pickled[0]} is pickled, which can run code when it is loaded; "
            "only safetensors weights are read"
        )
    raise CheckpointError(f"{directory}: neither {_SINGLE_NAME} nor {_INDEX_NAME} is there")


def _read_sharded(directory: Path) -> dict[str, TensorInfo]:
    index_path = directory / _INDEX_NAME
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map is missing or empty")
    tensors: dict[str, TensorInfo] = {}
    for shard in weight_map.values():
        if not _is_file_name(shard):
            raise CheckpointError(f"{index_path}: shard {shard!r:.200} is not a plain file name")
    for name in sorted(set(weight_map.values())):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: shard {name!r}, named in the index, is missing")
        tensors |= read_header(directory / name)
    for tensor, shard in weight_map.items():
        if tensor not in tensors or tensors[tensor].file != shard:
            problem = f"shard {shard!r} holds no {tensor!r:.200}, which the index names"
            raise CheckpointError(f"{directory}: {problem}")
    return tensors


def _is_file_name(value: object) -> bool:
    """Whether a file of a checkpoint may be called that."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARS:
        return False
    return Path(value).name == value and value.isprintable()


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, whose size must be what its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or header_bytes > size - 8:
                raise CheckpointError(f"{path}: truncated: {size} bytes do not hold its header")
            if header_bytes > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: not a safetensors file")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not a safetensors file: no JSON in its header") from None
    try:
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        first = 8 + header_bytes
        tensors = {name: _described(entry, path.name, first) for name, entry in header.items()}
        missing = first + end - size
    except (AttributeError, LookupError, TypeError, ValueError):
        raise CheckpointError(f"{path}: not a safetensors file: its header is malformed") from None
    if missing > 0:
        raise CheckpointError(f"{path}: truncated: {missing} of {size + missing} bytes are missing")
    return tensors


def _described(entry: dict[str, Any], file: str, first: int) -> TensorInfo:
    """`first` is where tensors begin in the file. Raises ValueError, TypeError and KeyError where
    an entry of a header is not what it has to be."""
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    start, end = entry["data_offsets"]
    if not all(type(each) is int and each >= 0 for each in (*shape, start, end)):
        raise ValueError("not whole numbers")
    num_bytes = prod(shape) * _ITEM_BYTES[dtype] if dtype in _ITEM_BYTES else end - start
    if not isinstance(dtype, str) or start > end or num_bytes != end - start:
        raise ValueError("offsets of another tensor")
    return TensorInfo(shape, dtype, file, first + start)


def _check_complete(
    directory: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]
) -> None:
    """Refuse what transformers would fill up with random weights and only a warning."""
    for name in _expected_names(config):
        if name not in tensors:
            raise CheckpointError(f"{directory}: the weights hold no {name}")
    shape = tensors["model.embed_tokens.weight"].shape
    expected = (config["vocab_size"], config["hidden_size"])
    if shape != expected:
        raise CheckpointError(
            f"{directory}: model.embed_tokens.weight has shape {list(shape)}, "
            f"config.json says {list(expected)}"
        )


def _expected_names(config: dict[str, Any]) -> Iterator[str]:
    """One at a time: config.json may name any number of layers."""
    yield from ("model.embed_tokens.weight", "model.norm.weight")
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight"
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield from (f"{prefix}self_attn.{part}_proj.weight" for part in "qkvo")
        yield from (f"{prefix}{place}_layernorm.weight" for place in ("input", "post_attention"))
