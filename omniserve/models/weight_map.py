"""Which tensors of a checkpoint make up each parameter of transformers' module."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from omniserve.checkpoint import TensorInfo
from omniserve.errors import CheckpointError
from omniserve.models.weight_files import FILE_DTYPES, WeightFiles

_NUM_SHOWN = 4
_ANCIENT = re.compile(r"\.rotary_emb\.inv_freq$")
"""Once stored with every layer; computed from the configuration since."""
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_OLD_BLOCK = ".block_sparse_moe."
"""What Mixtral's checkpoints call `.mlp.`."""
_STACKS = {
    "gate_proj": ("gate_up_proj", 0),
    "w1": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "w3": ("gate_up_proj", 1),
    "down_proj": ("down_proj", 0),
    "w2": ("down_proj", 0),
}
"""The module has the experts of a layer in two parameters [experts, ...], gates above ups."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the checkpoint and the rows that it fills."""

    name: str
    tensor: TensorInfo
    expert: int | None = None
    """None: it is all of the parameter."""
    half: int = 0
    """Of an expert's gate and up."""


class WeightMap:
    """The parts of every parameter, checked to be all that is there and all that is needed."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        shapes: Mapping[str, tuple[int, ...]],
        optional: frozenset[str],
    ) -> None:
        """`shapes` are those of the parameters; `optional` may be missing: they are tied.

        Raises:
            CheckpointError: a tensor is missing, unexpected, of another shape than config.json
                says, or of a dtype that is not read.
        """
        self._parts: dict[str, list[Part]] = {}
        unexpected = [name for name in tensors if not self._add(name, tensors[name], shapes)]
        if unexpected:
            raise CheckpointError(f"unexpected keys in the checkpoint: {_shown(unexpected)}")
        self._check(shapes, optional)

    def __contains__(self, parameter: str) -> bool:
        return parameter in self._parts

    @property
    def file_bytes(self) -> int:
        """That are to be read."""
        return sum(
            part.tensor.num_elements * FILE_DTYPES[part.tensor.dtype].itemsize
            for parts in self._parts.values()
            for part in parts
        )

    def read(self, parameter: str, files: WeightFiles, into: Tensor) -> None:
        """Fills `into`, which is of the parameter's shape and contiguous."""
        for part in self._parts[parameter]:
            files.read(part.tensor, _target(part, into))

    def _add(self, name: str, tensor: TensorInfo, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """False where nothing needs it."""
        parameter = name.replace(_OLD_BLOCK, ".mlp.")
        if parameter in shapes:
            self._parts.setdefault(parameter, []).append(Part(name, tensor))
            return True
        expert = _EXPERT.fullmatch(parameter)
        if expert is None:
            return _ANCIENT.search(name) is not None
        stack, half = _STACKS[expert[3]]
        parameter, index = f"{expert[1]}.{stack}", int(expert[2])
        if index >= shapes.get(parameter, (0,))[0]:
            return False
        self._parts.setdefault(parameter, []).append(Part(name, tensor, index, half))
        return True

    def _check(self, shapes: Mapping[str, tuple[int, ...]], optional: frozenset[str]) -> None:
        missing = []
        for parameter, shape in shapes.items():
            parts = self._parts.get(parameter, [])
            num_needed = _num_needed(parameter, shape, parts)
            if len(parts) < num_needed and not (parameter in optional and not parts):
                have = f" ({len(parts)} of {num_needed} parts are there)" if parts else ""
                missing.append(parameter + have)
            for part in parts:
                _check_part(part, shape, parameter)
        if missing:
            raise CheckpointError(f"missing keys in the checkpoint: {_shown(missing)}")


def _shown(names: list[str]) -> str:
    return ", ".join(sorted(names)[:_NUM_SHOWN])


def _num_needed(parameter: str, shape: tuple[int, ...], parts: list[Part]) -> int:
    if not parts or parts[0].expert is None:
        return 1
    return shape[0] * (2 if parameter.endswith("gate_up_proj") else 1)


def _check_part(part: Part, shape: tuple[int, ...], parameter: str) -> None:
    wanted = shape
    if part.expert is not None:
        rows = shape[1] // 2 if parameter.endswith("gate_up_proj") else shape[1]
        wanted = (rows, *shape[2:])
    if part.tensor.shape != wanted:
        raise CheckpointError(
            f"mismatched keys in the checkpoint: {part.name} has shape "
            f"{list(part.tensor.shape)}, config.json says {list(wanted)}"
        )
    if part.tensor.dtype not in FILE_DTYPES:
        raise CheckpointError(
            f"{part.name} is {part.tensor.dtype}; weights are read as {', '.join(FILE_DTYPES)}"
        )


def _target(part: Part, parameter: Tensor) -> Tensor:
    if part.expert is None:
        return parameter
    expert = parameter[part.expert]
    rows = part.tensor.shape[0]
    return expert[part.half * rows : (part.half + 1) * rows]
