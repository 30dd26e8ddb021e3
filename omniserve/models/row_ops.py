"""What a decoder layer does to its rows between the matrix products."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from omniserve.models.rotary import rotate


class RowOps(Protocol):
    """Row-wise operations; a device may have faster ones than torch's."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of x [rows, length]."""

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x + delta, and its RMSNorm."""

    def rotate_heads(
        self,
        heads: Tensor,
        norm_weight: Tensor | None,
        eps: float,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Per-head RMSNorm (where there is a weight) and RoPE of heads [rows, heads, head_dim].

        `heads` may be overwritten, and the result may be `heads` itself.
        """

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [rows, 2 * length], gate first."""


class TorchRowOps:
    """Right on every device, dtype and shape."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x + delta
        return total, self.norm(total, weight, eps)

    def rotate_heads(
        self,
        heads: Tensor,
        norm_weight: Tensor | None,
        eps: float,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        if norm_weight is not None:
            heads = F.rms_norm(heads, (heads.shape[-1],), None, eps) * norm_weight
        return rotate(heads, *rotary)

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
