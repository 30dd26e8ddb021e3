"""What every request of a schedule must answer: transformers' tokens, else the device's alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from engine_builders import GREEDY, Collected, make_request, run_all
from oracle import TIE_GAP, Oracle
from piggyback_builders import BLOCK_SIZE, MAX_MODEL_LEN, model_name

from omniserve.engine.core import Engine
from omniserve.engine.penalties import LogitAdjuster, has_penalties
from omniserve.engine.sampler import SamplingRow, sample
from omniserve.requests import EngineRequest, SamplingParams

MAX_TOKENS = 20
NUM_PROMPTS = 10
_LENGTHS = (1, 2, 15, 16, 17, 31, 33, 50, 70)
_LOGPROB_TOLERANCE = 1e-3
"""Of logits that agree to TIE_GAP, with room for the sum over the vocabulary."""


@dataclass(frozen=True)
class Verdict:
    """Of one request or many."""

    num_tokens: int = 0
    num_ties: int = 0
    """Tokens that differ where both are as good as each other."""
    wrong: tuple[str, ...] = ()

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(
            self.num_tokens + other.num_tokens,
            self.num_ties + other.num_ties,
            self.wrong + other.wrong,
        )


def make_prompts(seed: int) -> list[tuple[int, ...]]:
    """Of many lengths; every other one begins with two blocks that they share."""
    rng = random.Random(f"prompts {seed}")
    shared = tuple(rng.randrange(5, 500) for _ in range(2 * BLOCK_SIZE + 3))
    prompts = []
    for index in range(NUM_PROMPTS):
        own = tuple(rng.randrange(5, 500) for _ in range(rng.choice(_LENGTHS)))
        prompt = (shared if index % 2 else ()) + own
        prompts.append(prompt[: MAX_MODEL_LEN - MAX_TOKENS])
    return prompts


class References:
    """Expected answers for the prompts of one seed under one checkpoint; each is made once."""

    def __init__(self, arch: str, path: Path, engine: Engine, prompts_seed: int) -> None:
        self.prompts = make_prompts(prompts_seed)
        self._oracle = Oracle(path)
        self._model = model_name(arch, "off")
        self._engine = engine
        self._greedy: dict[tuple[int, ...], list[int]] = {}
        self._answers: dict[tuple[tuple[int, ...], str], Collected] = {}

    def greedy(self, prompt: tuple[int, ...]) -> list[int]:
        """MAX_TOKENS tokens as transformers generates them."""
        if prompt not in self._greedy:
            self._greedy[prompt] = self._oracle.generate(prompt, MAX_TOKENS)
        return self._greedy[prompt]

    def text(self, prompt: tuple[int, ...]) -> str:
        """Text of the greedy tokens."""
        return self._alone(prompt, replace(GREEDY, max_tokens=MAX_TOKENS)).text

    def prepare(self, request: EngineRequest) -> None:
        """Makes what `check` needs; the engine must have nothing else to do."""
        self._alone(request.prompt_token_ids, request.sampling)

    def check(self, request: EngineRequest, got: Collected) -> Verdict:
        """Compares an answer, or as much of one as came before it was cancelled."""
        prompt, sampling = request.prompt_token_ids, request.sampling
        expected = self._alone(prompt, sampling)
        same = _common_prefix(got.token_ids, expected.token_ids)
        if same < min(len(got.token_ids), len(expected.token_ids)):
            # From the first token that differs on there is another context.
            tie = self._is_tie(prompt, sampling, expected.token_ids[:same], got.token_ids[same])
            if tie:
                return Verdict(len(got.token_ids), num_ties=1)
            return Verdict(
                len(got.token_ids),
                wrong=(f"{request.request_id}: {got.token_ids}, expected {expected.token_ids}",),
            )
        verdict = Verdict(len(got.token_ids), wrong=tuple(_differences(request, got, expected)))
        return verdict + self._check_greedy(request, got)

    def _check_greedy(self, request: EngineRequest, got: Collected) -> Verdict:
        """The reference itself may be wrong: plain greedy tokens must be transformers'."""
        sampling = request.sampling
        if sampling.temperature > 0.0 or has_penalties(sampling) or sampling.logit_bias:
            return Verdict()
        prompt, tokens = request.prompt_token_ids, got.token_ids
        if tokens == self.greedy(prompt)[: len(tokens)]:
            return Verdict()
        comparison = self._oracle.compare(prompt, tokens)
        wrong = comparison.num_wrong > 0
        return Verdict(
            0,
            comparison.num_ties,
            (f"{request.request_id}: {tokens} is not as transformers has it",) if wrong else (),
        )

    def _alone(self, prompt: tuple[int, ...], sampling: SamplingParams) -> Collected:
        """What the engine answers without piggybacking and without company."""
        key = (prompt, repr(sampling))
        if key not in self._answers:
            request = make_request("reference", prompt, sampling, "best_effort", self._model)
            self._answers[key] = run_all(self._engine, [request])["reference"]
        return self._answers[key]

    def _is_tie(
        self,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        before: Sequence[int],
        token_id: int,
    ) -> bool:
        """Whether errors of float32 in transformers' logits suffice to choose this token."""
        logits = self._oracle.logits([*prompt, *before])[-1]
        adjuster = LogitAdjuster(sampling, prompt, len(logits), logits.device)
        for earlier in before:
            adjuster.observe(earlier)
        row = SamplingRow(sampling, sampling.seed or 0, len(before), adjuster)
        noise = torch.rand(64, len(logits), generator=torch.Generator().manual_seed(0)) - 0.5
        chosen = sample(logits + TIE_GAP * noise, [row] * len(noise)).token_ids.tolist()
        return token_id in chosen


def _differences(request: EngineRequest, got: Collected, expected: Collected) -> list[str]:
    """What is wrong beside the tokens, one line each."""
    name = request.request_id
    if got.finish_reason is None:
        is_prefix = expected.text.startswith(got.text)
        return [] if is_prefix else [f"{name}: text {got.text!r} of {expected.text!r}"]
    fields = ("token_ids", "text", "finish_reason", "stop_reason")
    lines = [
        f"{name}: {field} {getattr(got, field)!r}, expected {getattr(expected, field)!r}"
        for field in fields
        if getattr(got, field) != getattr(expected, field)
    ]
    if len(got.logprobs) != len(expected.logprobs):
        return [*lines, f"{name}: {len(got.logprobs)} logprobs, not {len(expected.logprobs)}"]
    for index, (mine, theirs) in enumerate(zip(got.logprobs, expected.logprobs, strict=True)):
        errors = [abs(mine.logprob - theirs.logprob)]
        errors += [abs(a[1] - b[1]) for a, b in zip(mine.top, theirs.top, strict=True)]
        if not max(errors) < _LOGPROB_TOLERANCE:
            lines.append(f"{name}: logprobs of token {index} {mine}, expected {theirs}")
    return lines


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((index for index, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
