"""torch's scaled_dot_product_attention on one case, in the forms that were worth trying.

It gets contiguous keys and values: gathering pages first would only add to its time.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from cpu_attention_case import (
    AttentionCase,
    Noise,
    exact_attention,
    huge_memory,
    relative_error,
)
from torch.nn.functional import scaled_dot_product_attention

NUM_TRIALS = 3
# int8 keys and values cannot be given to it; these are what they would be turned into.
STORED = {
    "float32": ["float32"],
    "float16": ["float16", "float32"],
    "bfloat16": ["bfloat16", "float32"],
    "int8": ["bfloat16", "float32"],
}
Timer = Callable[[Callable[[], object]], float]


class SdpaForm:
    """One way of calling it, with keys and values stored as `dtype`."""

    def __init__(self, case: AttentionCase, dtype: str, *, grouped: bool) -> None:
        self.name = f"{'enable_gqa' if grouped else 'rows'} {dtype}"
        self._case, self._grouped = case, grouped
        self._dtype: torch.dtype = getattr(torch, dtype)
        noise = Noise(seed=5)
        self._q = torch.from_numpy(
            noise.take(case.num_sequences, case.num_heads, 1, case.head_dim).copy()
        ).to(self._dtype)
        self._k, self._v = (self._filled(noise) for _ in range(2))
        self._out = torch.empty(0)

    def _filled(self, noise: Noise) -> torch.Tensor:
        case = self._case
        shape = (case.num_sequences, case.num_kv_heads, case.context_len, case.head_dim)
        num_bytes = torch.Size(shape).numel() * self._dtype.itemsize
        numbers = torch.from_numpy(huge_memory(num_bytes))[:num_bytes].view(self._dtype).view(shape)
        for rows in numbers.flatten(0, 1):
            for piece in rows.split(4096):
                piece.copy_(torch.from_numpy(noise.take(*piece.shape)))
        return numbers

    def run(self) -> None:
        case = self._case
        if self._grouped:
            self._out = scaled_dot_product_attention(
                self._q, self._k, self._v, scale=case.scale, enable_gqa=True
            )
            return
        # One query token sees everything, so the heads of a group may be rows of one query.
        rows = self._q.view(case.num_sequences, case.num_kv_heads, case.group_size, case.head_dim)
        self._out = scaled_dot_product_attention(rows, self._k, self._v, scale=case.scale)

    def error(self) -> float:
        """Of the last run, against float64."""
        case = self._case
        outs = self._out.reshape(case.num_sequences, case.num_heads, case.head_dim)
        errors = []
        for index in case.checked_sequences:
            q = self._q[index, :, 0].float().numpy()
            k, v = (x[index].transpose(0, 1).float().numpy() for x in (self._k, self._v))
            expected = exact_attention(q, k, v, case.scale)
            errors.append(relative_error(outs[index].float().numpy(), expected))
        return max(errors)


@dataclass(slots=True)
class BestSdpa:
    """The fastest form of a few trials; `tried` holds the median seconds of each."""

    form: SdpaForm
    error: float
    tried: dict[str, float] = field(default_factory=dict)


def best_sdpa(case: AttentionCase, timer: Timer) -> BestSdpa:
    best: BestSdpa | None = None
    tried: dict[str, float] = {}
    for dtype in STORED[case.kv]:
        # With one head a group the two are the same call.
        for grouped in (False, True) if case.group_size > 1 else (False,):
            form = SdpaForm(case, dtype, grouped=grouped)
            form.run()
            seconds = statistics.median(timer(form.run) for _ in range(NUM_TRIALS))
            if not tried or seconds < min(tried.values()):
                best = BestSdpa(form, form.error())
            tried[form.name] = seconds
    assert best is not None
    best.tried = tried
    return best


def shape_key(case: AttentionCase) -> tuple[object, ...]:
    """Cases with the same key are the same to torch, which knows no blocks."""
    return (
        case.kv,
        case.num_threads,
        case.num_kv_heads,
        case.group_size,
        case.head_dim,
        case.num_sequences,
        case.context_len,
    )
