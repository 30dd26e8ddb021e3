"""Questions to an engine: each answer to its asker, and nobody left waiting."""

import asyncio

import pytest

from omniserve.decision import Decision
from omniserve.engine_questions import EngineQuestions
from omniserve.errors import EngineUnavailable
from omniserve.messages import Explain, Explained


def told(what: str) -> tuple[Decision, ...]:
    return (Decision(0, 1.0, 1.0, 1, "queued", "", what),)


@pytest.mark.asyncio
async def test_answers_in_any_order_come_to_who_asked() -> None:
    questions, sent = EngineQuestions(), list[Explain]()
    askers = [asyncio.create_task(questions.ask(sent.append, name)) for name in "abc"]
    await asyncio.sleep(0)
    assert [message.request_id for message in sent] == ["a", "b", "c"]
    assert len({message.question for message in sent}) == 3
    for message in reversed(sent):
        questions.answer(Explained(message.question, told(message.request_id)))
    assert await asyncio.gather(*askers) == [told("a"), told("b"), told("c")]


@pytest.mark.asyncio
async def test_without_an_answer_in_time_the_engine_is_not_to_be_had() -> None:
    questions, sent = EngineQuestions(), list[Explain]()
    with pytest.raises(EngineUnavailable, match=r"no answer within 0\.01 s"):
        await questions.ask(sent.append, "a", patience_s=0.01)
    # An answer that comes late disturbs nobody.
    questions.answer(Explained(sent[0].question, told("a")))


@pytest.mark.asyncio
async def test_an_engine_that_is_lost_answers_nobody() -> None:
    questions = EngineQuestions()
    askers = [asyncio.create_task(questions.ask(lambda _: None, name)) for name in "ab"]
    await asyncio.sleep(0)
    askers[0].cancel()
    await asyncio.sleep(0)
    questions.fail_all("it is gone")
    with pytest.raises(EngineUnavailable, match="it is gone"):
        await askers[1]
    with pytest.raises(asyncio.CancelledError):
        await askers[0]
