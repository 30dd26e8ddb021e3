"""Numbers in messages, and that those of clients come back shortened."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from service_builders import make_generation_request, make_service

from omniserve.errors import InvalidRequest
from omniserve.requests import SamplingParams
from omniserve.shown_number import MAX_CHARS, shown_number

HUGE = 10**4200


@pytest.mark.parametrize("number", [0, -1, -(1 << 63), (1 << 64) - 1, 0.1, -1.7976931348623157e308])
def test_ordinary_numbers_are_shown_whole(number: float) -> None:
    assert shown_number(number) == str(number)
    assert len(str(number)) <= MAX_CHARS


@pytest.mark.parametrize("number", [HUGE, -HUGE])
def test_long_ones_are_cut(number: int) -> None:
    shown = shown_number(number)
    assert str(number).startswith(shown.partition("…")[0])
    assert shown.endswith(f"… ({len(str(number))} characters)")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "fields",
    [
        {"n": HUGE},
        {"deadline_ms": HUGE},
        {"prompts": ((1, HUGE),)},
        {"sampling": SamplingParams(max_tokens=HUGE)},
        {"sampling": SamplingParams(max_tokens=-HUGE)},
        {"sampling": SamplingParams(seed=HUGE)},
        {"sampling": SamplingParams(top_k=-HUGE)},
        {"sampling": SamplingParams(logprobs=HUGE)},
        {"sampling": SamplingParams(temperature=HUGE)},
        {"sampling": SamplingParams(stop_token_ids=(HUGE,))},
        {"sampling": SamplingParams(logit_bias={HUGE: 1.0})},
        {"sampling": SamplingParams(logit_bias={1: HUGE})},
    ],
)
async def test_no_message_repeats_a_huge_number(
    tiny_checkpoint: Path, fields: dict[str, Any]
) -> None:
    request = replace(make_generation_request(), **fields)
    with pytest.raises(InvalidRequest) as refused:
        await make_service(tiny_checkpoint).start(request)
    assert len(str(refused.value)) < 200
