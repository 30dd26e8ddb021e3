"""The buffer between the engine's pace and the client's."""

import asyncio
from dataclasses import replace

import pytest

from omniserve.errors import ClientTooSlow, EngineError
from omniserve.output_buffer import CHARS_PER_BLOCK, MAX_MERGED, OutputBuffer
from omniserve.requests import RequestOutput, TokenLogprob


def make_output(*token_ids: int, text: str = "", num_top: int = 0) -> RequestOutput:
    top = tuple((rank, -1.0) for rank in range(num_top))
    logprobs = tuple(TokenLogprob(token_id, -1.0, top) for token_id in token_ids)
    return RequestOutput("r", text, token_ids, logprobs if num_top else ())


@pytest.mark.asyncio
async def test_choices_take_turns() -> None:
    buffer = OutputBuffer()
    for index in (1, 0, 1):
        buffer.put(index, make_output(index, text=str(index)))
    taken = [await buffer.take() for _ in range(2)]
    assert [(index, output.token_ids, output.text) for index, output in taken] == [
        (1, (1, 1), "11"),
        (0, (0,), "0"),
    ]


@pytest.mark.asyncio
async def test_counts_are_those_of_the_newest_output() -> None:
    buffer = OutputBuffer()
    for count in (1, 2):
        counted = replace(
            make_output(7),
            num_prompt_tokens=10 + count,
            num_cached_tokens=20 + count,
            num_output_tokens=30 + count,
            num_piggybacked_tokens=40 + count,
        )
        buffer.put(0, counted)
    _, merged = await buffer.take()
    assert merged == replace(counted, token_ids=(7, 7))


@pytest.mark.asyncio
async def test_a_reader_that_keeps_up_is_never_cut_off() -> None:
    buffer = OutputBuffer(max_pending=10)
    for _ in range(50):
        buffer.put(0, make_output(1, 2, 3, text="x" * CHARS_PER_BLOCK, num_top=2))
        await buffer.take()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "output",
    [
        make_output(1, 2),
        make_output(1, num_top=1),
        make_output(1, text="x" * CHARS_PER_BLOCK),
    ],
)
async def test_tokens_alternatives_and_text_count(output: RequestOutput) -> None:
    buffer = OutputBuffer(max_pending=10)
    for _ in range(5):
        buffer.put(0, output)
    with pytest.raises(ClientTooSlow):
        buffer.put(0, output)


@pytest.mark.asyncio
async def test_one_output_of_any_size_fits_an_empty_buffer() -> None:
    buffer = OutputBuffer(max_pending=1)
    buffer.put(0, make_output(1, 2, 3))
    assert (await buffer.take())[1].token_ids == (1, 2, 3)


@pytest.mark.asyncio
async def test_the_first_error_comes_after_what_was_put_before() -> None:
    buffer = OutputBuffer()
    buffer.put(0, make_output(1))
    buffer.fail(EngineError("first"))
    buffer.fail(EngineError("second"))
    await buffer.take()
    with pytest.raises(EngineError, match="first"):
        await buffer.take()


@pytest.mark.asyncio
async def test_a_waiting_reader_is_woken() -> None:
    buffer = OutputBuffer()
    reader = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    buffer.put(3, make_output(1))
    assert (await reader)[0] == 3


@pytest.mark.asyncio
async def test_outputs_are_merged_up_to_what_one_message_may_hold() -> None:
    buffer = OutputBuffer(max_pending=10 * MAX_MERGED)
    half = MAX_MERGED // 2
    for index, first in ((0, 1), (1, 9), (0, 2), (0, 3), (0, 4)):
        buffer.put(index, make_output(*[first] * half))
    taken = [await buffer.take() for _ in range(3)]
    # What is full goes first, so that a choice's tokens stay in order.
    assert [(index, output.token_ids) for index, output in taken] == [
        (0, (1,) * half + (2,) * half),
        (0, (3,) * half + (4,) * half),
        (1, (9,) * half),
    ]
