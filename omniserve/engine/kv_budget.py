"""Who may have how much of one KV budget, before anything is allocated."""

from dataclasses import dataclass

from omniserve.engine.kv_budget_terms import DEVICE_KV, KvBudgetTerms, KvPart
from omniserve.errors import ConfigError
from omniserve.settings import ModelSettings

_FLOORS_SHARE = 2
"""Floors that nobody gave are together one part in so many of the budget, if all models have
such: the rest goes where the load is."""


@dataclass(frozen=True, slots=True)
class _Place:
    floor_bytes: int
    longest_bytes: int
    """Of one request as long as the model takes them; 0 while that is not known."""


class KvBudget:
    """The floors of all models, and what each of them can reach at most.

    A model's latency-sensitive requests draw on its own floor and on what is nobody's floor, so
    that is what its longest request must fit in.
    """

    def __init__(self, num_bytes: int, terms: KvBudgetTerms = DEVICE_KV) -> None:
        self.num_bytes = num_bytes
        self.terms = terms
        # Replaced whole, never changed: a thread that loads a model reads it meanwhile.
        self._places: dict[str, _Place] = {}

    def reserve(self, models: tuple[ModelSettings, ...]) -> None:
        """Keeps a floor for each of these that has a part, besides those that have one; all of
        them or none.

        Raises:
            ConfigError: the floors are more than the budget, or would leave too little for the
                longest request of a model that is there already.
        """
        named_parts = ((model.name, self.terms.part_of(model)) for model in models)
        parts = {name: part for name, part in named_parts if part is not None}
        num_models = len(self._places) + len(parts)
        floors = {name: self._floor_bytes(part, num_models) for name, part in parts.items()}
        budget_key, floor_key = self.terms.budget_key, self.terms.floor_key
        common_bytes = self.common_bytes - sum(floors.values())
        if common_bytes < 0:
            named = ", ".join(
                f"{name} {num_bytes}" for name, num_bytes in {**self._floors(), **floors}.items()
            )
            raise ConfigError(
                f"{budget_key}: {self.num_bytes} bytes are less than all "
                f"{floor_key} together ({named})"
            )
        for name, place in self._places.items():
            if place.longest_bytes > place.floor_bytes + common_bytes:
                raise ConfigError(
                    f"{budget_key}: beside the {floor_key} of "
                    f"{', '.join(floors)} {place.floor_bytes + common_bytes} of "
                    f"{self.num_bytes} bytes would be left to {name}, whose longest request needs "
                    f"{place.longest_bytes}; lower the floors or its max_model_len"
                )
        places = {name: _Place(num_bytes, 0) for name, num_bytes in floors.items()}
        self._places = {**self._places, **places}

    def settle(self, model: str, unit_bytes: int, longest_bytes: int) -> None:
        """Now it is known in what units its memory moves, and what its longest request needs."""
        floor_bytes = self._places[model].floor_bytes // unit_bytes * unit_bytes
        self._places = {**self._places, model: _Place(floor_bytes, longest_bytes)}

    def release(self, model: str) -> None:
        """Nothing is kept for it any more."""
        self._places = {name: place for name, place in self._places.items() if name != model}

    def has_place(self, model: str) -> bool:
        return model in self._places

    def floor_bytes(self, model: str) -> int:
        return self._places[model].floor_bytes

    def reach_bytes(self, model: str, unit_bytes: int) -> int:
        """What it can have at most without floors of others, in whole units."""
        floor_bytes = self._places[model].floor_bytes
        return (floor_bytes // unit_bytes + self.common_bytes // unit_bytes) * unit_bytes

    @property
    def common_bytes(self) -> int:
        """Nobody's floor."""
        return self.num_bytes - sum(self._floors().values())

    def _floors(self) -> dict[str, int]:
        return {name: place.floor_bytes for name, place in self._places.items()}

    def _floor_bytes(self, part: KvPart, num_models: int) -> int:
        even_bytes = self.num_bytes // (_FLOORS_SHARE * num_models)
        given = part.floor_bytes
        return min(part.most_bytes, even_bytes if given is None else given)
