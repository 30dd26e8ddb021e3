"""Questions to the engine that have not been answered."""

import asyncio
import itertools
from collections.abc import Callable

from omniserve.decision import Decision
from omniserve.errors import EngineUnavailable
from omniserve.messages import Explain, Explained

ANSWER_S = 10.0
"""An engine that is ready answers between two steps or layers."""


class EngineQuestions:
    """Brings each answer to whoever asked."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[tuple[Decision, ...]]] = {}

    async def ask(
        self, send: Callable[[Explain], None], request_id: str, patience_s: float = ANSWER_S
    ) -> tuple[Decision, ...]:
        """What the engine knows of a request.

        Raises EngineUnavailable where no answer comes in time, or none will come any more.
        """
        number = next(self._numbers)
        answer: asyncio.Future[tuple[Decision, ...]] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            send(Explain(number, request_id))
            async with asyncio.timeout(patience_s):
                return await answer
        except TimeoutError:
            raise EngineUnavailable(
                f"the engine gave no answer within {patience_s:g} s; try again later"
            ) from None
        finally:
            del self._open[number]

    def answer(self, message: Explained) -> None:
        """An answer that nobody waits for any more is dropped."""
        waiting = self._open.get(message.question)
        if waiting is not None and not waiting.done():
            waiting.set_result(message.timeline)

    def fail_all(self, message: str) -> None:
        """Nothing that is still open will be answered."""
        for waiting in self._open.values():
            if not waiting.done():
                waiting.set_exception(EngineUnavailable(message))
