"""Tells an engine that is at work from one that only looks so."""

from dataclasses import dataclass
from typing import Protocol

from omniserve.settings import ModelStats


class WatchedEngine(Protocol):
    """What the front knows of its engine."""

    @property
    def ready(self) -> bool: ...
    @property
    def num_in_flight(self) -> int: ...
    @property
    def num_reports(self) -> int: ...
    @property
    def stats(self) -> dict[str, ModelStats]: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    num_reports: int
    num_steps: int


class StepProgress:
    """Looked at now and then; knows since when nothing has moved that ought to."""

    def __init__(self, patience_s: float) -> None:
        """An engine with work that completes no step for longer than this is stalled."""
        self._patience_s = patience_s
        self._seen = _Seen(-1, -1)
        self._since_s = 0.0

    def is_stalled(self, engine: WatchedEngine, now_s: float) -> bool:
        """One that starts or is restarted is not: its supervision limits that."""
        models = engine.stats.values()
        seen = _Seen(engine.num_reports, sum(model.num_steps for model in models))
        has_work = any((*model.running.values(), *model.waiting.values()) for model in models)
        # Not requests alone: one whose client does not read is over for the engine.
        is_idle = not engine.num_in_flight or (
            not has_work and seen.num_reports != self._seen.num_reports
        )
        if not engine.ready or is_idle or seen.num_steps != self._seen.num_steps:
            self._since_s = now_s
        self._seen = seen
        return now_s - self._since_s > self._patience_s
