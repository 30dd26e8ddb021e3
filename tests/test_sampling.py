"""Sampling limits: every bound is tried on both sides."""

import math
from dataclasses import replace

import pytest

from omniserve.errors import InvalidRequest
from omniserve.requests import SamplingParams
from omniserve.sampling import INT64_MAX, check_sampling

VOCAB_SIZE = 100

ACCEPTED: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 2.0},
    {"top_p": 1e-6},
    {"top_k": 0},
    {"top_k": VOCAB_SIZE - 1},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"repetition_penalty": 10.0},
    {"logit_bias": {0: -100.0, VOCAB_SIZE - 1: 100.0}},
    {"stop": ("x" * 256,) * 16},
    {"stop_token_ids": (0, VOCAB_SIZE - 1)},
    {"max_tokens": 1},
    {"logprobs": 0},
    {"logprobs": 20},
    {"seed": INT64_MAX},
    {"seed": -(2**63)},
]

REFUSED: list[tuple[str, object]] = [
    ("temperature", -0.01),
    ("temperature", 2.01),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("top_k", -2),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("presence_penalty", 2.1),
    ("presence_penalty", -math.inf),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", math.nan),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 10.1),
    ("repetition_penalty", math.inf),
    ("logit_bias", {VOCAB_SIZE: 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {3: 100.5}),
    ("logit_bias", {3: math.nan}),
    ("logit_bias", dict.fromkeys(range(1025), 0.0)),
    ("stop", ("",)),
    ("stop", ("x" * 257,)),
    ("stop", ("x",) * 17),
    ("stop_token_ids", (VOCAB_SIZE,)),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", (1,) * 1025),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("logprobs", -1),
    ("logprobs", 21),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
]


@pytest.mark.parametrize("fields", ACCEPTED)
def test_accepts_the_whole_allowed_range(fields: dict[str, object]) -> None:
    params = replace(SamplingParams(), **fields)  # type: ignore[arg-type]
    assert check_sampling(params, 1, VOCAB_SIZE) == params


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_refuses_and_names_the_field(field: str, value: object) -> None:
    params = replace(SamplingParams(), **{field: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=rf"^{field}.*is not allowed; allowed: ") as refusal:
        check_sampling(params, 1, VOCAB_SIZE)
    assert refusal.value.param == field


def test_message_holds_value_and_range() -> None:
    message = r"^temperature: 3\.5 is not allowed; allowed: 0 to 2$"
    with pytest.raises(InvalidRequest, match=message):
        check_sampling(SamplingParams(temperature=3.5), 1, VOCAB_SIZE)


def test_message_never_holds_a_stop_string() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_sampling(SamplingParams(stop=("secret" * 50,)), 1, VOCAB_SIZE)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("top_k", [-1, VOCAB_SIZE, 10**6, 2**63, 10**400])
def test_top_k_that_keeps_every_token_means_no_limit(top_k: int) -> None:
    assert check_sampling(SamplingParams(top_k=top_k), 1, VOCAB_SIZE).top_k == 0


@pytest.mark.parametrize("n", [1, 16])
def test_accepts_n(n: int) -> None:
    check_sampling(SamplingParams(temperature=0.0), n, VOCAB_SIZE)


@pytest.mark.parametrize("n", [0, -1, 17])
def test_refuses_n(n: int) -> None:
    with pytest.raises(InvalidRequest, match="^n: ") as refusal:
        check_sampling(SamplingParams(), n, VOCAB_SIZE)
    assert refusal.value.param == "n"


def test_seeds_of_all_choices_fit_in_64_bits() -> None:
    check_sampling(SamplingParams(seed=INT64_MAX - 3), 4, VOCAB_SIZE)
    with pytest.raises(InvalidRequest, match="^seed: "):
        check_sampling(SamplingParams(seed=INT64_MAX - 2), 4, VOCAB_SIZE)
