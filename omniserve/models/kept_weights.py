"""Weights of models that sleep, in host memory: for devices that compute in memory of their own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from omniserve.models.linear import Linear, PlainLinear
from omniserve.models.weight_store import ModelWeights, StoredWeight, WeightStore

_PIECE_BYTES = 16 << 20
"""Copied at a time: on a device that also computes, steps wait for no more than that."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class KeptWeight:
    """One weight as the device laid it out, in host memory."""

    tensors: tuple[Tensor | None, ...]
    """Of a linear layer its weight and its bias."""
    is_linear: bool

    @classmethod
    def of(cls, stored: StoredWeight) -> "KeptWeight":
        value = stored.value
        if isinstance(value, Tensor):
            return cls((_copied(value, torch.device("cpu")),), is_linear=False)
        assert isinstance(value, PlainLinear), "packed weights are those of CPU devices"
        copies = (None if t is None else _copied(t, torch.device("cpu")) for t in value.parameters)
        return cls(tuple(copies), is_linear=True)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors if tensor is not None)

    def on(self, device: torch.device) -> StoredWeight:
        copies = [None if t is None else _copied(t, device) for t in self.tensors]
        weight = copies[0]
        assert weight is not None
        value: Tensor | Linear = PlainLinear(weight, copies[1]) if self.is_linear else weight
        return StoredWeight(value, self.num_bytes)


@dataclass(frozen=True, slots=True)
class KeptModel:
    """All weights of one model, in the order in which a model is built of them."""

    order: tuple[bytes, ...]
    """Digests; one that is used twice is here twice."""
    weights: dict[bytes, KeptWeight]
    has_tied_head: bool

    def take_apart(self) -> Iterator[None]:
        """It is not wanted any more."""
        while self.weights:
            self.weights.popitem()
            yield


class KeptStore:
    """Knows what is kept, by content: fine-tunes of one base keep it once."""

    def __init__(self) -> None:
        self._weights: WeakValueDictionary[bytes, KeptWeight] = WeakValueDictionary()

    def lacking_bytes(self, weights: ModelWeights) -> int:
        """That are not kept yet."""
        return sum(
            stored.num_bytes
            for digest, stored in weights.by_digest.items()
            if digest not in self._weights
        )

    def keep(
        self,
        weights: ModelWeights,
        into: dict[bytes, KeptWeight],
        require_room: Callable[[int], None] = lambda num_bytes: None,
    ) -> Iterator[None]:
        """Copies one weight after the other; `require_room` is asked for so many bytes before each
        that is not kept yet, and may raise what it likes."""
        for digest, stored in tuple(weights.by_digest.items()):
            kept = self._weights.get(digest)
            if kept is None:
                require_room(stored.num_bytes)
                kept = self._weights[digest] = KeptWeight.of(stored)
            into[digest] = kept
            yield


class RecalledWeights(ModelWeights):
    """The weights of a model that wakes: what it asks for comes from what was kept, in order, and
    what modules hold is not looked at."""

    def __init__(
        self,
        store: WeightStore,
        device: torch.device,
        kept: KeptModel,
        require_room: Callable[[int], None] = lambda num_bytes: None,
        on_recalled: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """`on_recalled` is told how many bytes of how many are there; it may raise."""
        super().__init__(store, device, packed=False, require_room=require_room)
        self._kept: KeptModel | None = kept
        self._next = iter(kept.order)
        self._on_recalled = on_recalled
        self._total_bytes = sum(kept.weights[digest].num_bytes for digest in kept.order)
        self._done_bytes = 0

    @property
    def recalls_tied_head(self) -> bool:
        return self._kept is not None and self._kept.has_tied_head

    def release(self) -> None:
        """All is recalled: nothing need be kept for this model any more."""
        self._kept = None

    def tensor(self, source: Tensor) -> Tensor:
        value = self._recall().value
        assert isinstance(value, Tensor) and value.shape == source.shape
        return value

    def linear(self, modules: Sequence[torch.nn.Linear]) -> Linear:
        value = self._recall().value
        assert not isinstance(value, Tensor)
        return value

    def embedding_and_head(self, embedding: Tensor) -> tuple[Tensor, Linear]:
        self.has_tied_head = True
        weight = self.tensor(embedding)
        return weight, PlainLinear(weight, None)

    def _recall(self) -> StoredWeight:
        assert self._kept is not None
        digest = next(self._next)
        kept = self._kept.weights[digest]

        def bring() -> StoredWeight:
            self._require_room(kept.num_bytes)
            return kept.on(self.device)

        weight = self._take(digest, bring)
        self._done_bytes += kept.num_bytes
        self._on_recalled(self._done_bytes, self._total_bytes)
        return weight


def _copied(source: Tensor, device: torch.device) -> Tensor:
    """In pieces."""
    copy = torch.empty(source.shape, dtype=source.dtype, device=device)
    into, flat = copy.view(-1), source.detach().reshape(-1)
    at_once = max(1, _PIECE_BYTES // source.element_size())
    for start in range(0, flat.numel(), at_once):
        into[start : start + at_once].copy_(flat[start : start + at_once])
    return copy
