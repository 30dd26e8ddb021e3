"""The models that a host attention process has, or will have when it runs."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from cpu_attn.host.descriptor import MAX_MODELS
from cpu_attn.host.settings import HostModel
from cpu_attn.host.slots import ModelMemory


@dataclass(slots=True)
class AddedModel:
    """A model with its slots."""

    index: int
    serial: int
    """Never the same twice, where an index may be."""
    model: HostModel
    memory: ModelMemory
    is_ready: bool = False
    """Whether the process that runs has it."""
    refusal: str = ""
    """Why the process that runs cannot serve it, where that is so."""

    @property
    def is_awaited(self) -> bool:
        """Whether the process has not said yet what became of it."""
        return not self.is_ready and not self.refusal


class AddedModels:
    """By index; the index of one that was removed is free again."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._by_index: dict[int, AddedModel] = {}
        self._serials = itertools.count()

    def __iter__(self) -> Iterator[AddedModel]:
        return iter(self._by_index.values())

    def __len__(self) -> int:
        return len(self._by_index)

    def __getitem__(self, index: int) -> AddedModel:
        return self._by_index[index]

    def __contains__(self, index: int) -> bool:
        return index in self._by_index

    @property
    def indices(self) -> list[int]:
        return sorted(self._by_index)

    @property
    def free_index(self) -> int:
        """The lowest, which the next model gets; MAX_MODELS where none is free."""
        return next((i for i in range(MAX_MODELS) if i not in self._by_index), MAX_MODELS)

    def add(self, model: HostModel) -> AddedModel:
        """At the lowest free index, with new memory.

        Raises ValueError where there are MAX_MODELS, OSError where there is too little memory.
        """
        free = self.free_index
        if free == MAX_MODELS:
            raise ValueError(f"models: {MAX_MODELS} are there already, no more are allowed")
        memory = ModelMemory.create(model, self._num_slots)
        added = AddedModel(free, next(self._serials), model, memory)
        self._by_index[free] = added
        return added

    def remove(self, index: int) -> None:
        """Gives its slots back; arrays of them stay valid as long as somebody has them."""
        memory = self._by_index.pop(index).memory.memory
        memory.close()

    def note_none_ready(self) -> None:
        """The process is gone; another one has to be told of all."""
        for added in self:
            added.is_ready, added.refusal = False, ""
