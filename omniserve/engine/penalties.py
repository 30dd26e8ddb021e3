"""Penalties and biases on one request's logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from omniserve.requests import SamplingParams

_MAX_LOGIT = 1e30
"""Still finite after a division by the lowest temperature."""


def has_penalties(params: SamplingParams) -> bool:
    """Whether earlier tokens of the request change its logits."""
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


class LogitAdjuster:
    """Applies repetition, frequency and presence penalties and the logit bias of one request.

    Repetition counts prompt and output tokens, the other two output tokens alone.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._params = params
        self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._counts = torch.zeros(vocab_size, dtype=torch.float32, device=device)
        if params.repetition_penalty != 1.0:
            self._seen[torch.tensor(prompt_token_ids, device=device)] = True
        self._bias_ids = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=device)
        self._bias = torch.tensor(
            list(params.logit_bias.values()), dtype=torch.float32, device=device
        )

    def observe(self, token_id: int) -> None:
        """Counts an output token."""
        self._seen[token_id] = True
        self._counts[token_id] += 1

    def apply(self, logits: Tensor) -> None:
        """Changes logits [vocab_size] float32 in place."""
        params = self._params
        if params.repetition_penalty != 1.0:
            penalised = torch.where(
                logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty
            )
            # A penalty near zero overflows, and what is infinite cannot be sampled from.
            penalised = penalised.clamp(-_MAX_LOGIT, _MAX_LOGIT)
            logits.copy_(torch.where(self._seen, penalised, logits))
        if params.frequency_penalty:
            logits.sub_(self._counts, alpha=params.frequency_penalty)
        if params.presence_penalty:
            logits.sub_((self._counts > 0).float(), alpha=params.presence_penalty)
        if len(self._bias_ids):
            logits[self._bias_ids] += self._bias
