"""A decoder-only model cut where its attention is: `pre` and `post` of every layer."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from omniserve.models.families import Family, Window
from omniserve.models.linear import Linear
from omniserve.models.lora import ALL_ROWS, LayerDelta, RowDelta, add_deltas
from omniserve.models.rotary import RotaryTable
from omniserve.models.row_ops import RowOps
from omniserve.models.weight_store import ModelWeights, StoredWeight

_SILU = ("silu", "swish")
# What transformers' experts do with their weights, besides what the shapes say.
_ROUTING = ("num_experts_per_tok", "norm_topk_prob", "hidden_act", "_experts_implementation")


class DenseMlp:
    """Gated MLP with gate and up projections fused."""

    def __init__(self, mlp: Any, weights: ModelWeights, row_ops: RowOps, hidden_act: str) -> None:
        self._act = mlp.act_fn
        self._is_silu = hidden_act in _SILU
        self._row_ops = row_ops
        self._gate_up = weights.linear([mlp.gate_proj, mlp.up_proj])
        self._down = weights.linear([mlp.down_proj])
        self.identity: Hashable = (hidden_act, id(self._gate_up), id(self._down))

    def __call__(self, x: Tensor, deltas: Sequence[RowDelta] = ()) -> Tensor:
        gate_up = add_deltas(self._gate_up(x), x, ((rows, of.gate_up) for rows, of in deltas))
        if self._is_silu:
            inner = self._row_ops.gated_silu(gate_up)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            inner = self._act(gate) * up
        return add_deltas(self._down(inner), inner, ((rows, of.down) for rows, of in deltas))


class SparseMlp:
    """Mixture of experts: transformers' own block over the rows of a step."""

    def __init__(self, mlp: Any, weights: ModelWeights, config: Any) -> None:
        self._mlp = mlp
        self._parameters = weights.adopt(mlp)
        choices = (getattr(config, name, None) for name in _ROUTING)
        self.identity: Hashable = (type(mlp), *choices, *map(id, self._parameters))

    def __call__(self, x: Tensor, deltas: Sequence[RowDelta] = ()) -> Tensor:
        """`deltas` add nothing here: adapters of experts are refused."""
        out: Tensor = self._mlp(x[None])
        return out[0]


class Norm:
    """Weight and epsilon of an RMSNorm."""

    def __init__(self, norm: Any, weights: ModelWeights) -> None:
        self.weight = weights.tensor(norm.weight)
        self.eps: float = norm.variance_epsilon
        self.identity: Hashable = (id(self.weight), self.eps)


class DecoderLayer:
    """One layer as two functions over rows [rows, hidden_size]; rows do not see each other here."""

    def __init__(self, layer: Any, weights: ModelWeights, row_ops: RowOps) -> None:
        attention = layer.self_attn
        config = attention.config
        self._row_ops = row_ops
        self.head_dim: int = attention.head_dim
        self._input_norm = Norm(layer.input_layernorm, weights)
        self._post_norm = Norm(layer.post_attention_layernorm, weights)
        self._qkv = weights.linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self._o = weights.linear([attention.o_proj])
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self._qk_norm_weight, self._qk_norm_eps = self._head_norm(attention, weights)
        self._mlp: DenseMlp | SparseMlp = (
            DenseMlp(layer.mlp, weights, row_ops, config.hidden_act)
            if hasattr(layer.mlp, "gate_proj")
            else SparseMlp(layer.mlp, weights, config)
        )

    def _head_norm(self, attention: Any, weights: ModelWeights) -> tuple[Tensor | None, float]:
        """Per-head norm weights [num_heads + num_kv_heads, head_dim] of Qwen3, else None."""
        if not hasattr(attention, "q_norm"):
            return None, 0.0
        q = attention.q_norm.weight.detach().expand(self.num_heads, -1)
        k = attention.k_norm.weight.detach().expand(self.num_kv_heads, -1)
        return weights.tensor(torch.cat([q, k])), attention.q_norm.variance_epsilon

    @property
    def identity(self) -> Hashable:
        """Equal for layers that compute the same with the same weights in memory, of those that
        are alive."""
        return (
            (self.num_heads, self.num_kv_heads, self.head_dim, type(self._row_ops)),
            (self._input_norm.identity, self._post_norm.identity),
            (id(self._qkv), id(self._o), id(self._qk_norm_weight), self._qk_norm_eps),
            self._mlp.identity,
        )

    def pre(
        self,
        residual: Tensor,
        rotary: tuple[Tensor, Tensor],
        deltas: Sequence[RowDelta] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norm, QKV projection, head norm, RoPE. `deltas` are of rows that belong to adapters.

        Returns q [rows, num_heads, head_dim], k and v [rows, num_kv_heads, head_dim] (strided
        views).
        """
        norm = self._input_norm
        normed = self._row_ops.norm(residual, norm.weight, norm.eps)
        qkv = add_deltas(self._qkv(normed), normed, ((rows, of.qkv) for rows, of in deltas))
        heads = qkv.view(residual.shape[0], -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        qk, v = heads[:, :num_rotated], heads[:, num_rotated:]
        qk = self._row_ops.rotate_heads(qk, self._qk_norm_weight, self._qk_norm_eps, rotary)
        return qk[:, : self.num_heads], qk[:, self.num_heads :], v

    def post(
        self, residual: Tensor, attention_out: Tensor, deltas: Sequence[RowDelta] = ()
    ) -> Tensor:
        """O projection, add, norm, MLP, add; attention_out is [rows, num_heads * head_dim].
        `deltas` as in `pre`."""
        norm = self._post_norm
        out = self._o(attention_out)
        out = add_deltas(out, attention_out, ((rows, of.o) for rows, of in deltas))
        residual, normed = self._row_ops.add_norm(residual, out, norm.weight, norm.eps)
        return residual + self._mlp(normed, deltas)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ModelParts:
    """All that the weights of a checkpoint make of a model; it may be part of several."""

    embedding: Tensor
    head: Linear
    norm: Norm
    layers: tuple[DecoderLayer, ...]
    held: Mapping[bytes, StoredWeight]
    """What `ModelWeights` is to hold for it, in the order in which it was made."""

    @classmethod
    def of(cls, module: Any, weights: ModelWeights, row_ops: RowOps) -> Self:
        """Takes a module apart: its parameters go to `weights`, and are released."""
        before = weights.by_digest
        embedding, head = cls._ends(module, weights)
        norm = Norm(module.model.norm, weights)
        # Of fine-tunes with the same layer both have the one object.
        layers = tuple(
            weights.one_of(DecoderLayer(layer, weights, row_ops)) for layer in module.model.layers
        )
        after = weights.by_digest
        held = {digest: weight for digest, weight in after.items() if digest not in before}
        return cls(embedding, head, norm, layers, held)

    @staticmethod
    def _ends(module: Any, weights: ModelWeights) -> tuple[Tensor, Linear]:
        """Embedding and output head."""
        embedding, head = module.model.embed_tokens.weight, module.lm_head
        if head.weight is embedding:
            return weights.embedding_and_head(embedding)
        return weights.tensor(embedding), weights.linear([head])


class DecoderModel:
    """`embed`, the layers, and `logits` of a loaded transformers model."""

    def __init__(
        self,
        module: Any,
        parts: ModelParts,
        family: Family,
        max_model_len: int,
        weights: ModelWeights,
        row_ops: RowOps,
        deltas: Sequence[LayerDelta | None] = (),
    ) -> None:
        """`parts` are of a module like this one, and held by `weights`.

        `deltas` are what an adapter adds to each layer; none where the model is no adapter.
        """
        config = module.config
        self.config = config
        self.architecture = family.architecture
        self.num_parameters: int = module.num_parameters()
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.weights = weights
        self._parts: ModelParts | None = parts
        self._embedding, self._head, self._norm = parts.embedding, parts.head, parts.norm
        self.dtype = self._embedding.dtype
        self._row_ops = row_ops
        self.rotary = RotaryTable(module.model.rotary_emb, max_model_len, self.dtype, weights)
        self.layers = list(parts.layers)
        self._deltas = list(deltas)
        self.windows: tuple[Window, ...] = tuple(
            family.window(config, index) for index in range(len(self.layers))
        )
        self.num_heads = self.layers[0].num_heads
        self.num_kv_heads = self.layers[0].num_kv_heads
        self.head_dim = self.layers[0].head_dim

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def deltas_of(self, layer: int, rows: slice = ALL_ROWS) -> tuple[RowDelta, ...]:
        """For `pre` and `post` of a layer, where these rows are the model's."""
        delta = self._deltas[layer] if self._deltas else None
        return () if delta is None else (RowDelta(rows, delta),)

    @property
    def is_adapter(self) -> bool:
        return bool(self._deltas)

    def take_apart(self) -> Iterator[None]:
        """Drops layers and weights one after the other; it can compute nothing any more."""
        self._parts = None
        self._deltas.clear()
        while self.layers:
            self.layers.pop()
            yield
        yield from self.weights.take_apart()

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids int64 [rows] to residual [rows, hidden_size]."""
        return self._embedding[token_ids]

    def logits(self, residual: Tensor) -> Tensor:
        """Final norm and output head: [rows, vocab_size] in the model's dtype."""
        norm = self._norm
        return self._head(self._row_ops.norm(residual, norm.weight, norm.eps))
