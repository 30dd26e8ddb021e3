"""The weights of all models of a process, each of them once: what is equal is shared."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from omniserve.models.linear import Linear, PlainLinear, fused_parameters, packed_linear
from omniserve.models.weight_digest import combined_digest, weight_digest

if TYPE_CHECKING:
    from omniserve.models.decoder import DecoderLayer, ModelParts

_NO_BIAS = bytes(32)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class StoredWeight:
    """One weight in memory, laid out for the device."""

    value: Tensor | Linear
    num_bytes: int


class WeightStore:
    """Knows the weights that models of this process hold, by content; any thread may ask.

    It keeps nothing alive itself: a weight is gone with the last model that holds it.
    """

    def __init__(self) -> None:
        self._weights: WeakValueDictionary[bytes, StoredWeight] = WeakValueDictionary()
        self._layers: WeakValueDictionary[Hashable, DecoderLayer] = WeakValueDictionary()
        self.parts: WeakValueDictionary[Hashable, ModelParts] = WeakValueDictionary()
        """What was made of checkpoints, by what they were read from and for."""

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def num_bytes(self) -> int:
        """Of all weights in memory."""
        return sum(weight.num_bytes for weight in self._weights.values())

    def find(self, digest: bytes, make: Callable[[], StoredWeight]) -> StoredWeight:
        """The weight of this content, made now where no model has it."""
        weight = self._weights.get(digest)
        return self._weights.setdefault(digest, make()) if weight is None else weight

    def one_of(self, layer: "DecoderLayer") -> "DecoderLayer":
        """`layer`, or one that is there and computes the same with the same weights."""
        return self._layers.setdefault(layer.identity, layer)


class ModelWeights:
    """The weights that one model holds; it takes them from modules that are being taken apart.

    Sources are released one by one, so that what is read of a checkpoint is not held twice.
    """

    def __init__(
        self,
        store: WeightStore,
        device: torch.device,
        packed: bool,
        require_room: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """packed: whether linear layers are packed for oneDNN. `require_room` is asked for so many
        bytes before each weight that no other model has; it may raise what it likes."""
        self._require_room = require_room
        self.device = device
        self.packed = packed
        self.store = store
        self._held: dict[bytes, StoredWeight] = {}
        self._order: list[bytes] = []
        self.has_tied_head = False
        """Whether the embedding is the output head as well."""

    @property
    def held(self) -> Iterable[StoredWeight]:
        """Each of them once."""
        return self._held.values()

    @property
    def by_digest(self) -> Mapping[bytes, StoredWeight]:
        """Those that it holds now."""
        return dict(self._held)

    def hold(self, weights: Mapping[bytes, StoredWeight]) -> None:
        """What another model holds already."""
        self._held |= weights

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Of the held, in the order in which they were asked for first: equal for models whose
        weights are."""
        return tuple(self._held)

    @property
    def order(self) -> tuple[bytes, ...]:
        """Digests in the order in which weights were asked for, some of them more than once."""
        return tuple(self._order)

    def tensor(self, source: Tensor) -> Tensor:
        """A tensor on the device that equals `source`, which may be it: nobody may change it."""
        return self._tensor(weight_digest(source), source)

    def linear(self, modules: Sequence[torch.nn.Linear]) -> Linear:
        """One linear layer that computes the outputs of several side by side, in their order.

        The modules' own parameters are released.
        """
        parts: list[bytes] = []
        for module in modules:
            parts.append(weight_digest(module.weight))
            parts.append(_NO_BIAS if module.bias is None else weight_digest(module.bias))
        linear = self._linear(parts, lambda: fused_parameters(modules))
        for module in modules:
            module.weight = torch.nn.Parameter(module.weight.new_empty(0), requires_grad=False)
            module.register_parameter("bias", None)
        return linear

    def embedding_and_head(self, embedding: Tensor) -> tuple[Tensor, Linear]:
        """A tied output head beside the embedding, which must stay as it is."""
        self.has_tied_head = True
        digest = weight_digest(embedding)
        weight = self._tensor(digest, embedding)
        if not self.packed:
            return weight, PlainLinear(weight, None)
        return weight, self._linear([digest, _NO_BIAS], lambda: (weight, None))

    def adopt(self, module: torch.nn.Module) -> tuple[Tensor, ...]:
        """Moves a module that stays whole to the device; returns its parameters, now shared."""
        tensors = []
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                tensors.append(self.tensor(parameter))
                setattr(part, name, torch.nn.Parameter(tensors[-1], requires_grad=False))
        module.to(self.device)
        return tuple(tensors)

    def one_of(self, layer: "DecoderLayer") -> "DecoderLayer":
        """`layer`, or one of another model that computes the same with the same weights."""
        return self.store.one_of(layer)

    def take_apart(self) -> Iterator[None]:
        """Lets go of one weight after the other; the model's layers are gone already."""
        while self._held:
            self._held.popitem()
            yield

    def _tensor(self, digest: bytes, source: Tensor) -> Tensor:
        def take() -> StoredWeight:
            self._require_room(source.nbytes)
            value = source.detach().to(self.device).contiguous()
            return StoredWeight(value, value.nbytes)

        value = self._hold(f"tensor {self.device}", [digest], take).value
        assert isinstance(value, Tensor)
        return value

    def _linear(
        self, parts: list[bytes], parameters: Callable[[], tuple[Tensor, Tensor | None]]
    ) -> Linear:
        def lay_out() -> StoredWeight:
            weight, bias = parameters()
            num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
            self._require_room(num_bytes)
            if self.packed:
                return StoredWeight(packed_linear(weight, bias), num_bytes)
            bias = None if bias is None else bias.to(self.device)
            return StoredWeight(PlainLinear(weight.to(self.device), bias), num_bytes)

        kind = f"{'packed' if self.packed else 'plain'} linear {self.device}"
        value = self._hold(kind, parts, lay_out).value
        assert not isinstance(value, Tensor)
        return value

    def _hold(
        self, kind: str, parts: list[bytes], make: Callable[[], StoredWeight]
    ) -> StoredWeight:
        return self._take(combined_digest(kind, parts), make)

    def _take(self, digest: bytes, make: Callable[[], StoredWeight]) -> StoredWeight:
        weight = self._held[digest] = self.store.find(digest, make)
        self._order.append(digest)
        return weight
