"""A fine-tune of a checkpoint, as far as memory is concerned: its last layers are others."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from omniserve.checkpoint import CheckpointSummary, inspect_checkpoint
from omniserve.errors import CheckpointError
from omniserve.synthetic.target_directory import check_replaceable, is_own_file, replacing
from omniserve.synthetic.weights import Progress, to_dtype

_PIECE_ELEMENTS = 1 << 20
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.")

CHANGE = 0.1
"""Size of what is added to a weight, as a part of the tensor's root mean square."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor that is to change lies in a weights file."""

    name: str
    start: int
    num_elements: int
    dtype: str


def write_finetune(
    base: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    layers_from: float = 0.75,
    seed: int = 0,
    force: bool = False,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write a copy of `base` to `directory` in which the last layers differ, and return its path.

    The first `layers_from` of the layers, embedding, last norm and output head keep every bit; at
    least the last layer changes. Every weight of it gets a random number added, which depends on
    `seed` and the tensor's name alone. CheckpointError where something stands in the way; then
    nothing has changed.
    """
    if not 0.0 <= layers_from < 1.0:
        raise CheckpointError(f"layers_from {layers_from}: use 0 or more, and less than 1")
    if seed < 0:
        raise CheckpointError(f"seed {seed}: use 0 or more")
    summary = inspect_checkpoint(base)
    source, target = summary.path.resolve(), Path(directory).resolve()
    if target == source:
        raise CheckpointError(f"{target} is the base itself; give another directory")
    check_replaceable(target, force)
    files = sorted(path for path in source.iterdir() if is_own_file(path))
    total = sum(path.stat().st_size for path in files)
    weights = {tensor.file for tensor in summary.tensors.values()}
    with replacing(target, total) as partial:
        written = 0
        for path in files:
            shutil.copyfile(path, partial / path.name)
            if path.name in weights:
                _change(partial / path.name, _first_changed(summary, layers_from), seed)
            written += path.stat().st_size
            progress(written, total)
    return target


def _first_changed(summary: CheckpointSummary, layers_from: float) -> int:
    return int(summary.config["num_hidden_layers"] * layers_from)


def _change(path: Path, first_layer: int, seed: int) -> None:
    with path.open("r+b") as file:
        for place in _places(path, file, first_layer):
            digest = hashlib.sha256(f"finetune {seed} {place.name}".encode()).digest()
            generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest)))
            scale = np.float32(CHANGE * _root_mean_square(file, place))
            for start, values in _pieces(file, place):
                values += scale * generator.standard_normal(len(values), dtype=np.float32)
                file.seek(start)
                file.write(to_dtype(values, place.dtype).data.cast("B"))


def _places(path: Path, file: BinaryIO, first_layer: int) -> Iterator[_Place]:
    header_bytes = int.from_bytes(file.read(8), "little")
    header: dict[str, Any] = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        found = _LAYER.match(name)
        if found is None or int(found[1]) < first_layer:
            continue
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: {name} is of {entry['dtype']}, which is not changed")
        dtype = _DTYPES[entry["dtype"]]
        start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        yield _Place(name, start, (end - start) // _item_bytes(dtype), dtype)


def _root_mean_square(file: BinaryIO, place: _Place) -> float:
    squares = sum(float(np.square(values, dtype=float).sum()) for _, values in _pieces(file, place))
    return math.sqrt(squares / max(1, place.num_elements))


def _pieces(file: BinaryIO, place: _Place) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Where each one lies in the file, and its values."""
    item_bytes = _item_bytes(place.dtype)
    for first in range(0, place.num_elements, _PIECE_ELEMENTS):
        count = min(_PIECE_ELEMENTS, place.num_elements - first)
        start = place.start + first * item_bytes
        file.seek(start)
        yield start, _from_dtype(file.read(count * item_bytes), place.dtype)


def _item_bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _from_dtype(data: bytes, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "bfloat16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype)).astype(np.float32)
