"""One request inside the engine: its sampling state, its text, and when it ends."""

import secrets
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

import torch

from omniserve.engine.detokenizer import StopStringFilter, TextStream
from omniserve.engine.penalties import LogitAdjuster, has_penalties
from omniserve.engine.sampler import SamplingRow
from omniserve.requests import EngineRequest, FinishReason, RequestOutput, TokenLogprob
from scheduler.request import Request, Status


@dataclass(frozen=True, slots=True)
class Progress:
    """What one sampled token did to a sequence."""

    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None


FAILED = Progress("", "error", None)
"""The model's logits were not finite, so there is no token."""


class Sequence:
    """Joins what the client asked for, the scheduler's state, and the text so far."""

    def __init__(
        self,
        request: EngineRequest,
        state: Request,
        text_stream: TextStream,
        eos_token_ids: SequenceOf[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        params = request.sampling
        self.request = request
        self.state = state
        self._text_stream = text_stream
        self._stop_filter = StopStringFilter(params.stop)
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._seed = params.seed if params.seed is not None else secrets.randbits(63)
        self._adjuster = (
            LogitAdjuster(params, request.prompt_token_ids, vocab_size, device)
            if has_penalties(params) or params.logit_bias
            else None
        )
        self.num_output_tokens = 0
        self.num_piggybacked_tokens = 0

    @property
    def is_offloaded(self) -> bool:
        """Whether tokens may come from its lane; not one whose id a cancelled request had there."""
        return self.state.status is Status.OFFLOADED

    @property
    def _other_tier(self) -> str:
        """The tier that serves it, where that is not the one it was sent for."""
        return "" if self.state.tier == self.request.tier else self.state.tier

    def sampling_row(self, index: int) -> SamplingRow:
        """How output token `index` is to be sampled."""
        return SamplingRow(self.request.sampling, self._seed, index, self._adjuster)

    def accept(self, token_id: int) -> Progress:
        """Takes the next output token; the reason is None unless the token ends the request."""
        self.num_output_tokens += 1
        if self._adjuster is not None:
            self._adjuster.observe(token_id)
        if token_id in self._stop_token_ids:
            return Progress(self._stop_filter.flush(), "stop", token_id)
        if token_id in self._eos_token_ids:
            return Progress(self._stop_filter.flush(), "stop", None)
        text, stop = self._stop_filter.push(self._text_stream.push(token_id))
        return Progress(text, "stop" if stop is not None else None, stop)

    def failure(self) -> RequestOutput:
        """The message that ends a request whose logits were not finite."""
        return self._end(
            "the model's logits are not finite: broken weights, or its dtype overflows"
        )

    def unavailable(self, reason: str) -> RequestOutput:
        """The message that ends a request whose model goes."""
        return replace(self._end(reason), is_unavailable=True)

    def _end(self, error: str) -> RequestOutput:
        return RequestOutput(
            request_id=self.request.request_id,
            text="",
            token_ids=(),
            finish_reason="error",
            num_prompt_tokens=self.state.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_piggybacked_tokens=self.num_piggybacked_tokens,
            tier=self._other_tier,
            error=error,
        )

    def output(
        self, token_id: int, progress: Progress, logprob: TokenLogprob | None, at_limit: bool
    ) -> RequestOutput:
        """The message for this token; `at_limit` says that it is the last the request may have."""
        text, reason = progress.text, progress.finish_reason
        if reason is None and at_limit:
            text, reason = text + self._stop_filter.flush(), "length"
        return RequestOutput(
            request_id=self.request.request_id,
            text=text,
            token_ids=(token_id,),
            logprobs=() if logprob is None else (logprob,),
            finish_reason=reason,
            stop_reason=progress.stop_reason,
            num_prompt_tokens=self.state.num_prompt_tokens,
            num_cached_tokens=self.state.num_cached_tokens,
            num_output_tokens=self.num_output_tokens,
            num_piggybacked_tokens=self.num_piggybacked_tokens,
            tier=self._other_tier,
        )
