"""Reading weights of a checkpoint piece by piece, each from its file to where it belongs."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from omniserve.checkpoint import TensorInfo
from omniserve.errors import CheckpointError

PIECE_BYTES = 8 << 20
"""Read at a time: small beside a layer, and large beside what a call costs."""

FILE_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""By safetensors' name; weights of other dtypes are not read."""


class WeightFiles:
    """The open files of one checkpoint.

    They are read, not mapped: a file that is cut short meanwhile ends the load, and not the
    process.
    """

    def __init__(self, directory: Path, on_read: Callable[[int], None]) -> None:
        """`on_read` is told the bytes of every piece once it is there; it may raise."""
        self._directory = directory
        self._on_read = on_read
        self._open: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, tensor: TensorInfo, into: Tensor) -> None:
        """Fills `into` [tensor.shape], contiguous, of any floating dtype and device.

        Raises:
            CheckpointError: the file cannot be read, or is shorter than its header says.
        """
        assert into.is_contiguous() and tuple(into.shape) == tensor.shape
        path = self._directory / tensor.file
        dtype = FILE_DTYPES[tensor.dtype]
        flat = into.view(-1)
        piece_elements = PIECE_BYTES // dtype.itemsize
        try:
            file = self._file(tensor.file)
            file.seek(tensor.start)
            for first in range(0, flat.numel(), piece_elements):
                self._read_piece(file, path, dtype, flat[first : first + piece_elements])
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None

    def _read_piece(self, file: BinaryIO, path: Path, dtype: torch.dtype, into: Tensor) -> None:
        is_in_place = into.dtype == dtype and into.device.type == "cpu"
        piece = into if is_in_place else torch.empty(into.numel(), dtype=dtype)
        memory = memoryview(piece.view(torch.uint8).numpy().data)
        done = 0
        while done < len(memory):
            count = file.readinto(memory[done:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{path}: truncated while it was read")
            done += count
        if not is_in_place:
            into.copy_(piece)
        self._on_read(len(memory))

    def _file(self, name: str) -> BinaryIO:
        if name not in self._open:
            file = (self._directory / name).open("rb", buffering=0)
            self._open[name] = self._stack.enter_context(file)
        return self._open[name]
