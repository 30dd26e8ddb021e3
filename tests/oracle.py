"""The oracle of exactness: what plain transformers generates, token for token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TIE_GAP = 1e-4


@dataclass(frozen=True)
class Comparison:
    """How a sequence of tokens compares with greedy generation."""

    num_tokens: int
    num_ties: int
    """Mismatches where the oracle's two best logits are within TIE_GAP."""
    num_wrong: int


class Oracle:
    """A transformers model in float32."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Greedy continuation of exactly `num_tokens`, end-of-sequence ignored."""
        ids = torch.tensor([list(prompt)])
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return list(out[0, len(prompt) :].tolist())

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits [len(tokens), vocab_size] of one forward pass."""
        out: torch.Tensor = self._model(torch.tensor([list(tokens)])).logits[0]
        return out

    def compare(self, prompt: Sequence[int], tokens: Sequence[int]) -> Comparison:
        """Compares each of `tokens` with the greedy one after `prompt` and the tokens before it.

        One forward pass tells all of them: tokens that are the best at every place are those that
        greedy generation gives.
        """
        if not tokens:
            return Comparison(0, 0, 0)
        best = self.logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :].topk(2)
        num_ties = num_wrong = 0
        for token, ids, values in zip(
            tokens, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            if token == ids[0]:
                continue
            is_tie = token == ids[1] and values[0] - values[1] < TIE_GAP
            num_ties += is_tie
            num_wrong += not is_tie
        return Comparison(len(tokens), num_ties, num_wrong)
