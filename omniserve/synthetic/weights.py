"""Random tensors, drawn piece by piece and streamed to sharded safetensors files."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniserve.synthetic.layout import TensorSpec

MAX_SHARD_BYTES = 2 << 30
_PIECE_ELEMENTS = 1 << 20
_QUIET_FACTOR = 0.25

_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes in all."""


def weight_bytes(specs: Iterable[TensorSpec], dtype: str) -> int:
    """Bytes of all tensors together, headers not counted."""
    return sum(spec.num_elements for spec in specs) * _ITEM_BYTES[dtype]


def write_weights(
    directory: Path,
    specs: list[TensorSpec],
    dtype: str,
    seed: str,
    progress: Progress,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the tensors as one `model.safetensors`, or as shards and an index where they are large.

    The values depend on `seed` and the tensor's name and shape alone. Memory stays at a few MiB.
    """
    shards = list(_split(specs, dtype, max_shard_bytes))
    total, written = weight_bytes(specs, dtype), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            name = "model.safetensors"
        weight_map |= {spec.name: name for spec in shard}
        before = written
        for done in write_file(directory / name, shard, dtype, seed):
            written = before + done
            progress(written, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def write_file(path: Path, specs: list[TensorSpec], dtype: str, seed: str) -> Iterator[int]:
    """Writes one safetensors file, and yields the bytes of weights written so far."""
    written = 0
    with path.open("wb") as file:
        file.write(_header(specs, dtype))
        for spec in specs:
            for piece in _pieces(spec, dtype, seed):
                written += file.write(piece)
                yield written


def _split(specs: list[TensorSpec], dtype: str, limit: int) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    size = 0
    for spec in specs:
        spec_bytes = weight_bytes([spec], dtype)
        if shard and size + spec_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(spec)
        size += spec_bytes
    yield shard


def _header(shard: list[TensorSpec], dtype: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in shard:
        end = offset + weight_bytes([spec], dtype)
        entries[spec.name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    return len(text).to_bytes(8, "little") + text


def _pieces(spec: TensorSpec, dtype: str, seed: str) -> Iterator[memoryview]:
    digest = hashlib.sha256(f"{seed} {spec.name}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest)))
    quiet = spec.quiet_rows * spec.shape[-1]
    for start in range(0, spec.num_elements, _PIECE_ELEMENTS):
        count = min(_PIECE_ELEMENTS, spec.num_elements - start)
        values = generator.standard_normal(count, dtype=np.float32)
        values *= np.float32(spec.std)
        if spec.mean:
            values += np.float32(spec.mean)
        if start < quiet:
            values[: quiet - start] *= np.float32(_QUIET_FACTOR)
        yield to_dtype(values, dtype).data.cast("B")


def to_dtype(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Rounded; bfloat16 as the 16 bits of each."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16)
    # bfloat16 is the upper half of a float32, rounded to nearest, ties to even.
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
