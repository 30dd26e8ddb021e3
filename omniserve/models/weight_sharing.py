"""Which models of a process hold the same weights, and what that saves."""

from collections.abc import Mapping
from fractions import Fraction
from weakref import ref

from omniserve.models.weight_store import ModelWeights
from omniserve.settings import WeightStats


class WeightSharing:
    """`weight_sharing`, reckoned anew only where the models are others; keeps none of them alive.

    Of many large models it takes a millisecond, and is asked for several times a second.
    """

    def __init__(self) -> None:
        self._models: dict[str, ref[ModelWeights]] = {}
        self._found: dict[str, WeightStats] = {}

    def of(self, models: Mapping[str, ModelWeights]) -> Mapping[str, WeightStats]:
        """By model, what it holds alone and what it shares with others of them."""
        found = {name: ref(weights) for name, weights in models.items()}
        if found != self._models:
            self._models, self._found = found, weight_sharing(models)
        return self._found


def weight_sharing(models: Mapping[str, ModelWeights]) -> dict[str, WeightStats]:
    """By model, what it holds alone and what it shares with others of them."""
    holders: dict[int, list[str]] = {}
    for name, weights in models.items():
        for weight in weights.held:
            holders.setdefault(id(weight), []).append(name)
    return {name: _of(name, weights, holders) for name, weights in models.items()}


def _of(name: str, weights: ModelWeights, holders: Mapping[int, list[str]]) -> WeightStats:
    own_bytes = shared_bytes = 0
    # Parts of bytes add up: rounded one by one, three models would save other bytes than there are.
    saved = Fraction()
    shared_with: dict[str, int] = {}
    for weight in weights.held:
        names = holders[id(weight)]
        if len(names) == 1:
            own_bytes += weight.num_bytes
            continue
        shared_bytes += weight.num_bytes
        saved += Fraction(weight.num_bytes * (len(names) - 1), len(names))
        for other in names:
            if other != name:
                shared_with[other] = shared_with.get(other, 0) + weight.num_bytes
    return WeightStats(own_bytes, shared_bytes, round(saved), shared_with)
