"""A model on its way out of the engine, from when it is to go until its memory is given back."""

from collections.abc import Callable, Iterable
from enum import Enum

from omniserve.engine.kv_sharing import KvSharing
from omniserve.engine.memory_return import MemoryReturn, Remains
from omniserve.engine.model_news import News
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.requests import RequestOutput

TakeOut = Callable[[str], tuple[ModelRuntime | None, list[RequestOutput]]]
"""Ends the requests of a model and takes it from those that run; None where a step of it has to
come to its end first."""


class Stage(Enum):
    """How far it is."""

    STEPPING = "stepping"
    """It takes part in steps, or is not there at all."""
    ON_HOST = "on_host"
    """The host lets go of the requests that it had there, in its own time."""
    IN_MEMORY = "in_memory"
    """A thread gives its memory back."""
    GONE = "gone"


class Leaving:
    """Of one model, or of a load that came to nothing; to be advanced between steps."""

    def __init__(
        self,
        name: str,
        news: Iterable[News],
        kv_sharing: KvSharing,
        note_gone: Callable[[str], None] | None = None,
        remains_of: Callable[[ModelRuntime], Remains] = lambda runtime: runtime,
    ) -> None:
        """`news` are what is to be told once nothing is left of it; `note_gone` has what becomes of
        its part of the KV budget then, unless that is for all again; `remains_of` what becomes of
        its weights."""
        self.name = name
        self.news = tuple(news)
        self.stage = Stage.STEPPING
        self._kv_sharing = kv_sharing
        self._note_gone = note_gone or kv_sharing.remove
        self._remains_of = remains_of
        self._runtime: ModelRuntime | None = None
        self._memory: MemoryReturn | None = None

    def take_out(self, take_out: TakeOut) -> list[RequestOutput]:
        """Its requests end; once more in the next step, where it then still is in steps."""
        self._runtime, outputs = take_out(self.name)
        if self._runtime is not None:
            self.stage = Stage.ON_HOST
        return outputs

    def give_back(self, left: Remains | None) -> None:
        """It takes part in nothing any more. The caller keeps no reference."""
        self._memory = MemoryReturn(left)
        self.stage = Stage.IN_MEMORY

    def end(self) -> None:
        """There is no such model, or it is asleep."""
        self._note_gone(self.name)
        self.stage = Stage.GONE

    def advance(self) -> None:
        """What can be done now; never waits."""
        if self.stage is Stage.ON_HOST:
            self._leave_host()
        elif self._memory is not None and self._memory.is_done:
            self._note_gone(self.name)
            self._memory, self.stage = None, Stage.GONE

    def _leave_host(self) -> None:
        runtime = self._runtime
        assert runtime is not None
        runtime.poll()
        if runtime.is_quiet:
            runtime.leave_host()
            self._kv_sharing.retire(self.name)
            self._runtime = None
            self.give_back(self._remains_of(runtime))
