"""What becomes of each model: which there are, in which state, and who asked for them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from omniserve.config import ModelConfig

ModelState = Literal["loading", "serving", "asleep", "waking", "draining", "failed"]
Origin = Literal["file", "operator"]

MAX_FAILED = 16
"""Models that could not be loaded are remembered for people who look; of more, the newest."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far the loading of a model is."""

    phase: str = "waiting"
    done_bytes: int = 0
    """Of its weights."""
    total_bytes: int = 0
    """0 where it is not known yet."""


@dataclass(frozen=True, slots=True)
class ModelStanding:
    """One model at one moment."""

    config: ModelConfig
    state: ModelState
    origin: Origin
    """Who asked for it: the configuration file, or an operator by Admin.LoadModel."""
    since_s: float
    """When it came into this state, on the clock of the service."""
    is_pinned: bool = False
    progress: LoadProgress | None = None
    """While it is loading, or waking."""
    error: str = ""
    """Why it failed; of one that is asleep, why it could not be woken when that was tried last."""

    @property
    def name(self) -> str:
        return self.config.name


class ModelRoster:
    """All models that there are, in order; those that failed take up no names."""

    def __init__(self, models: Iterable[ModelConfig], now_s: float) -> None:
        """The models of the configuration, as they are once the engine is ready."""
        self._standings = {
            model.name: ModelStanding(model, "serving", "file", now_s, model.pinned)
            for model in models
        }

    def __iter__(self) -> Iterator[ModelStanding]:
        return iter(tuple(self._standings.values()))

    def get(self, name: str) -> ModelStanding | None:
        return self._standings.get(name)

    @property
    def present(self) -> tuple[ModelStanding, ...]:
        """Those whose names and memory are taken: all but those that failed."""
        return tuple(each for each in self if each.state != "failed")

    def put(self, standing: ModelStanding) -> None:
        """In the place of the one of this name, where there is one."""
        self._standings[standing.name] = standing
        failed = [each.name for each in self if each.state == "failed"]
        for name in failed[: max(0, len(failed) - MAX_FAILED)]:
            del self._standings[name]

    def progress(self, name: str, progress: LoadProgress) -> None:
        """Of one that is loading, or waking."""
        self._standings[name] = replace(self._standings[name], progress=progress)

    def remove(self, name: str) -> None:
        self._standings.pop(name, None)

    def order(self, first: Iterable[str]) -> None:
        """These come first, in this order, where they are there; the others stay behind them."""
        names = dict.fromkeys((*first, *self._standings))
        self._standings = {name: self._standings[name] for name in names if name in self._standings}
