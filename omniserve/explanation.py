"""What became of a request and why: what the front noted and what the engine decided, in one."""

from collections.abc import Awaitable, Callable

from omniserve.decision import WHOLE_REQUEST, Decision
from omniserve.errors import EngineUnavailable, UnknownRequest
from omniserve.front_notes import FrontNotes

_PREFIXES = ("", "chatcmpl-", "cmpl-")
"""Bodies of the OpenAI API put these before the id of the request."""
_SHOWN_CHARS = 128

AskEngine = Callable[[str], Awaitable[tuple[Decision, ...]]]


async def explain(notes: FrontNotes, ask_engine: AskEngine, given_id: str) -> tuple[Decision, ...]:
    """In order of time, of the newest request that goes by this id.

    Where the engine is not to be had, a last entry says so.

    Raises:
        UnknownRequest: nothing is known of it, or not any more.
        EngineUnavailable: the front knows nothing of it, and the engine cannot be asked.
    """
    request_id = _known_id(notes, given_id)
    ours = notes.of(request_id)
    try:
        theirs = await ask_engine(request_id)
    except EngineUnavailable as error:
        if not ours:
            raise
        at_s = ours[-1].at_s
        gap = Decision(
            WHOLE_REQUEST, at_s, at_s, 1, "unknown", "the engine cannot tell", str(error)
        )
        return (*ours, gap)
    if ours:
        # What is older is about another request of the same id.
        theirs = tuple(each for each in theirs if each.at_s >= ours[0].at_s)
    if not ours and not theirs:
        raise UnknownRequest(
            f"nothing is known of request {given_id[:_SHOWN_CHARS]!r}: "
            "it never came, or too many came after it, "
            "or it was refused before it was read, which the log tells"
        )
    return tuple(sorted((*ours, *theirs), key=lambda each: each.at_s))


def _known_id(notes: FrontNotes, given_id: str) -> str:
    """What the front calls it; the id as it was given where the front knows of none."""
    candidates = [given_id.removeprefix(prefix) for prefix in _PREFIXES]
    return next((name for name in candidates if notes.of(name)), given_id)
