"""Sampling against independent formulas: transformers' processors, exact distributions."""

from collections import Counter
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omniserve.engine.penalties import LogitAdjuster
from omniserve.engine.random_numbers import uniform
from omniserve.engine.sampler import NO_TOKEN, SamplingRow, sample
from omniserve.requests import SamplingParams

VOCAB = 600


def make_row(seed: int = 0, index: int = 0, **params: Any) -> SamplingRow:
    return SamplingRow(SamplingParams(**params), seed, index, None)


def make_logits(rows: int = 1, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def support(logits: torch.Tensor, draws: int = 400, **params: Any) -> set[int]:
    rows = [make_row(seed=1, index=i, **params) for i in range(draws)]
    return set(sample(logits.expand(draws, -1).clone(), rows).token_ids.tolist())


def test_greedy_is_argmax() -> None:
    logits = make_logits(5)
    rows = [make_row(temperature=0.0)] * 5
    assert sample(logits, rows).token_ids.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        ({"temperature": 0.7, "top_k": 7}, [TopKLogitsWarper(7)]),
        ({"temperature": 0.7, "top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        (
            {"temperature": 0.7, "top_k": 20, "top_p": 0.5},
            [TopKLogitsWarper(20), TopPLogitsWarper(0.5)],
        ),
        ({"temperature": 0.7, "min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"temperature": 0.7, "top_k": 500}, [TopKLogitsWarper(500)]),
    ],
)
def test_only_allowed_tokens_are_drawn(params: dict[str, Any], warpers: list[Any]) -> None:
    logits = make_logits()
    warped = TemperatureLogitsWarper(0.7)(None, logits.clone())
    for warper in warpers:
        warped = warper(None, warped)
    allowed = set(torch.isfinite(warped[0]).nonzero()[:, 0].tolist())
    drawn = support(logits, **params)
    assert drawn <= allowed
    likely = set((warped[0].softmax(-1) > 0.03).nonzero()[:, 0].tolist())
    assert likely <= drawn


def test_a_flat_distribution_needs_more_than_the_first_candidates() -> None:
    """Top-p of a nearly uniform row keeps most of the vocabulary."""
    logits = make_logits(spread=0.01)
    assert len(support(logits, draws=3000, temperature=1.0, top_p=0.9)) > 500


@pytest.mark.parametrize("params", [{}, {"top_p": 0.8}, {"top_k": 4}, {"min_p": 0.2}])
def test_frequencies_follow_the_distribution(params: dict[str, Any]) -> None:
    logits = torch.full((1, VOCAB), -1e4)
    logits[0, :6] = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0])
    draws = 6000
    rows = [make_row(seed=5, index=i, temperature=0.8, **params) for i in range(draws)]
    counts = Counter(sample(logits.expand(draws, -1).clone(), rows).token_ids.tolist())
    shares = (logits[0, :6] / 0.8).softmax(-1)
    if "top_p" in params:
        kept = shares.cumsum(0) - shares < params["top_p"]
    elif "top_k" in params:
        kept = torch.arange(6) < params["top_k"]
    elif "min_p" in params:
        kept = shares >= params["min_p"] * shares.max()
    else:
        kept = torch.ones(6, dtype=torch.bool)
    expected = torch.where(kept, shares, 0) / shares[kept].sum()
    for token in range(6):
        deviation = 5 * (float(expected[token]) * draws) ** 0.5 + 1
        assert abs(counts[token] - float(expected[token]) * draws) < deviation


def test_a_seeded_row_does_not_depend_on_its_neighbours() -> None:
    logits = make_logits(4)
    row = make_row(seed=9, index=3, temperature=1.0, top_p=0.9)
    alone = sample(logits[:1].clone(), [row]).token_ids[0]
    others = [make_row(seed=i, temperature=0.5 + i, top_k=i * 300) for i in range(3)]
    together = sample(logits.clone(), [row, *others]).token_ids[0]
    assert alone == together


def test_random_numbers_are_uniform_and_fixed() -> None:
    numbers = [uniform(7, i) for i in range(4000)]
    assert uniform(7, 0) == numbers[0] != uniform(8, 0)
    assert all(0.0 <= x < 1.0 for x in numbers)
    tenths = Counter(int(x * 10) for x in numbers)
    assert all(300 < tenths[i] < 500 for i in range(10))


def test_penalties_and_bias() -> None:
    prompt, outputs = [1, 2, 3], [3, 4, 4]
    params = SamplingParams(
        repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.3, logit_bias={9: 5.0}
    )
    adjuster = LogitAdjuster(params, prompt, VOCAB, torch.device("cpu"))
    for token in outputs:
        adjuster.observe(token)
    logits = make_logits()
    actual = logits[0].clone()
    adjuster.apply(actual)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(
        torch.tensor([prompt + outputs]), logits.clone()
    )[0]
    for token, count in Counter(outputs).items():
        expected[token] -= 0.3 * count + 0.4
    expected[9] += 5.0
    torch.testing.assert_close(actual, expected)


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = make_logits(2)
    rows = [make_row(temperature=2.0, logprobs=3), make_row(temperature=0.0)]
    sampled = sample(logits.clone(), rows)
    assert list(sampled.logprobs) == [0]
    token = int(sampled.token_ids[0])
    entry = sampled.logprobs[0].to_host(token)
    expected = logits[0].log_softmax(-1)
    assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-5)
    assert [token for token, _ in entry.top] == expected.topk(3).indices.tolist()
    assert [value for _, value in entry.top] == pytest.approx(
        expected.topk(3).values.tolist(), abs=1e-5
    )


@pytest.mark.parametrize("temperature", [1e-12, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = make_logits(3)
    rows = [make_row(seed=i, temperature=temperature) for i in range(3)]
    assert sample(logits.clone(), rows).token_ids.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [1e-9, 1e-46, 5e-324])
def test_lowest_top_p_keeps_the_best_token(top_p: float) -> None:
    logits = make_logits()
    assert support(logits, temperature=1.0, top_p=top_p) == {int(logits.argmax())}


@pytest.mark.parametrize("penalty", [1e-39, 5e-324])
@pytest.mark.parametrize("temperature", [1e-9, 1.0])
def test_repetition_penalty_near_zero_prefers_seen_tokens(
    penalty: float, temperature: float
) -> None:
    logits = make_logits()
    seen = int(logits.argmax())
    params = SamplingParams(repetition_penalty=penalty, temperature=temperature)
    adjuster = LogitAdjuster(params, [seen], VOCAB, logits.device)
    rows = [SamplingRow(params, 1, index, adjuster) for index in range(50)]
    assert sample(logits.expand(50, -1).clone(), rows).token_ids.tolist() == [seen] * 50


@pytest.mark.parametrize(
    "params", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"logprobs": 3}]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_give_no_token(params: dict[str, Any], value: float) -> None:
    logits = make_logits(2)
    logits[1] = value
    rows = [make_row(seed=1, temperature=1.0, **params)] * 2
    tokens = sample(logits, rows).token_ids.tolist()
    assert tokens[0] == sample(logits[:1], rows[:1]).token_ids.item()
    assert tokens[1] == NO_TOKEN
