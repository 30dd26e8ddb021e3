"""Top-k and top-p sampling without sorting the vocabulary where a few candidates hold the mass."""

from collections.abc import Sequence

import torch
from torch import Tensor

_FEW_CANDIDATES = 256


def sample_truncated(
    scaled: Tensor, top_ks: Sequence[int], top_p: Tensor, numbers: Tensor
) -> Tensor:
    """One token a row from its top-k, then top-p candidates.

    Args:
        scaled: logits over temperature, [rows, vocab_size] float32, -inf where already excluded.
        top_ks: candidates to keep by row; 0 keeps all.
        top_p: [rows, 1]; the smallest set of candidates whose share is at least this is kept.
        numbers: uniform numbers in [0, 1), [rows] float64.

    Top-p acts on the distribution that top-k leaves, as in transformers and vLLM.
    """
    vocab_size = scaled.shape[-1]
    # Only where the host computes anyway: to look whether a few were enough stops an accelerator.
    few = _FEW_CANDIDATES if scaled.device.type == "cpu" else vocab_size
    width = min(vocab_size, max(few, *top_ks))
    token_ids, covered = _sample_among(scaled, width, top_ks, top_p, numbers)
    if width == vocab_size:
        return token_ids
    missed = (~covered).nonzero()[:, 0]
    if len(missed):
        # A flat distribution: the mass reaches beyond the candidates, so these rows are sorted
        # whole.
        some_top_ks = [top_ks[index] for index in missed.tolist()]
        token_ids[missed] = _sample_among(
            scaled[missed], vocab_size, some_top_ks, top_p[missed], numbers[missed]
        )[0]
    return token_ids


def _sample_among(
    scaled: Tensor, width: int, top_ks: Sequence[int], top_p: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens [rows], and whether the `width` best candidates were enough [rows]."""
    values, ids = scaled.topk(width, dim=-1)
    limits = torch.tensor([k or scaled.shape[-1] for k in top_ks], device=scaled.device)[:, None]
    ranks = torch.arange(width, device=scaled.device)
    values = values.masked_fill(ranks >= limits, float("-inf"))
    cut_by_rank = limits <= width
    log_total = torch.where(
        cut_by_rank,
        values.logsumexp(dim=-1, keepdim=True),
        scaled.logsumexp(dim=-1, keepdim=True),
    )
    shares = (values - log_total).exp().double()
    cumulative = shares.cumsum(dim=-1)
    covered = cut_by_rank[:, 0] | (cumulative[:, -1] >= top_p[:, 0]) | (width == scaled.shape[-1])
    # A candidate stays while the share before it is below top_p; the best always does.
    kept = cumulative - shares < top_p
    kept_mass = torch.where(kept, shares, 0).cumsum(dim=-1)
    targets = numbers[:, None] * kept_mass[:, -1:]
    picks = torch.searchsorted(kept_mass, targets, right=True).clamp(max=width - 1)
    return ids.gather(1, picks)[:, 0], covered
