"""A decoder-only model cut where its attention is: `pre` and `post` of every layer."""

from typing import Any

import torch
from torch import Tensor

from omniserve.models.families import Family, Window
from omniserve.models.linear import Linear, fuse
from omniserve.models.rotary import RotaryTable
from omniserve.models.row_ops import RowOps

_SILU = ("silu", "swish")


class DenseMlp:
    """Gated MLP with gate and up projections fused."""

    def __init__(self, mlp: Any, packed: bool, row_ops: RowOps, is_silu: bool) -> None:
        self._act = mlp.act_fn
        self._is_silu = is_silu
        self._row_ops = row_ops
        self._gate_up = fuse([mlp.gate_proj, mlp.up_proj], packed)
        self._down = fuse([mlp.down_proj], packed)

    def __call__(self, x: Tensor) -> Tensor:
        gate_up = self._gate_up(x)
        if self._is_silu:
            return self._down(self._row_ops.gated_silu(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self._down(self._act(gate) * up)


class SparseMlp:
    """Mixture of experts: transformers' own block over the rows of a step."""

    def __init__(self, mlp: Any) -> None:
        self._mlp = mlp

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._mlp(x[None])
        return out[0]


class DecoderLayer:
    """One layer as two functions over rows [rows, hidden_size]; rows do not see each other here."""

    def __init__(self, layer: Any, packed: bool, row_ops: RowOps) -> None:
        attention = layer.self_attn
        self._row_ops = row_ops
        self.head_dim: int = attention.head_dim
        self._input_norm = layer.input_layernorm
        self._post_norm = layer.post_attention_layernorm
        self._qkv = fuse([attention.q_proj, attention.k_proj, attention.v_proj], packed)
        self._o = fuse([attention.o_proj], packed)
        self.num_heads: int = attention.config.num_attention_heads
        self.num_kv_heads: int = attention.config.num_key_value_heads
        self._qk_norm_weight, self._qk_norm_eps = self._head_norm(attention)
        self._mlp: DenseMlp | SparseMlp = (
            DenseMlp(layer.mlp, packed, row_ops, attention.config.hidden_act in _SILU)
            if hasattr(layer.mlp, "gate_proj")
            else SparseMlp(layer.mlp)
        )

    def _head_norm(self, attention: Any) -> tuple[Tensor | None, float]:
        """Per-head norm weights [num_heads + num_kv_heads, head_dim] of Qwen3, else None."""
        if not hasattr(attention, "q_norm"):
            return None, 0.0
        q = attention.q_norm.weight.detach().expand(self.num_heads, -1)
        k = attention.k_norm.weight.detach().expand(self.num_kv_heads, -1)
        return torch.cat([q, k]).contiguous(), attention.q_norm.variance_epsilon

    def pre(self, residual: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Norm, QKV projection, head norm, RoPE.

        Returns q [rows, num_heads, head_dim], k and v [rows, num_kv_heads, head_dim] (strided
        views).
        """
        norm = self._input_norm
        qkv = self._qkv(self._row_ops.norm(residual, norm.weight, norm.variance_epsilon))
        heads = qkv.view(residual.shape[0], -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        qk, v = heads[:, :num_rotated], heads[:, num_rotated:]
        qk = self._row_ops.rotate_heads(qk, self._qk_norm_weight, self._qk_norm_eps, rotary)
        return qk[:, : self.num_heads], qk[:, self.num_heads :], v

    def post(self, residual: Tensor, attention_out: Tensor) -> Tensor:
        """O projection, add, norm, MLP, add; attention_out is [rows, num_heads * head_dim]."""
        norm = self._post_norm
        residual, normed = self._row_ops.add_norm(
            residual, self._o(attention_out), norm.weight, norm.variance_epsilon
        )
        return residual + self._mlp(normed)


class DecoderModel:
    """`embed`, the layers, and `logits` of a loaded transformers model."""

    def __init__(
        self, module: Any, family: Family, max_model_len: int, packed: bool, row_ops: RowOps
    ) -> None:
        config = module.config
        self.config = config
        self.architecture = family.architecture
        self.num_parameters: int = module.num_parameters()
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self._embedding: Tensor = module.model.embed_tokens.weight.detach()
        self.dtype = self._embedding.dtype
        self._norm = module.model.norm
        self._row_ops = row_ops
        self._head = self._output_head(module, packed)
        self.rotary = RotaryTable(module.model.rotary_emb, max_model_len, self.dtype)
        self.layers = [DecoderLayer(layer, packed, row_ops) for layer in module.model.layers]
        self.windows: tuple[Window, ...] = tuple(
            family.window(config, index) for index in range(len(self.layers))
        )
        self.num_heads = self.layers[0].num_heads
        self.num_kv_heads = self.layers[0].num_kv_heads
        self.head_dim = self.layers[0].head_dim

    @staticmethod
    def _output_head(module: Any, packed: bool) -> Linear:
        head = module.lm_head
        if head.weight is module.model.embed_tokens.weight:
            # A tied head shares its weight with the embedding, which must stay as it is.
            tied = torch.nn.Linear(1, 1, bias=False)
            tied.weight = torch.nn.Parameter(head.weight.detach(), requires_grad=False)
            head = tied
        return fuse([head], packed)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids int64 [rows] to residual [rows, hidden_size]."""
        return self._embedding[token_ids]

    def logits(self, residual: Tensor) -> Tensor:
        """Final norm and output head: [rows, vocab_size] in the model's dtype."""
        norm = self._norm
        return self._head(self._row_ops.norm(residual, norm.weight, norm.variance_epsilon))
