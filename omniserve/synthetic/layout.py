"""Names, shapes and scales of every tensor of a synthetic checkpoint, derived from its config.

The scales are chosen so that greedy text depends on the whole context and does not fall into short
cycles, while rounding errors stay small: see `Scales`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2, prod, sqrt
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: independent normal values with this mean and standard deviation."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    quiet_rows: int = 0
    """Leading rows that are made smaller, so that those tokens are hardly ever generated."""

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Scales:
    """Root mean squares of what the parts of the network put out, given normalised input."""

    embedding: float = 0.7
    tied_embedding: float = 0.1
    """A tied head favours the tokens whose embedding still shows in the last residual."""
    attention: float = 1.0
    mlp: float = 0.7
    router: float = 2.0
    logit: float = 4.0
    norm_jitter: float = 0.1
    qk_bias: float = 0.5
    v_bias: float = 0.1

    def attention_score(self, num_layers: int) -> float:
        """Standard deviation of attention scores.

        Near 0 attention is an average over the whole context, which hides any one token; far above
        3 it blows up rounding errors, and more so the more layers there are.
        """
        return max(1.5, 4.0 - 0.5 * log2(num_layers))


SCALES = Scales()
NUM_QUIET_TOKENS = 4


def tensor_specs(config: dict[str, Any], scales: Scales = SCALES) -> Iterator[TensorSpec]:
    """Every tensor of the checkpoint with this config, in file order."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tied = config["tie_word_embeddings"]
    embedding_std = scales.tied_embedding if tied else scales.embedding
    yield TensorSpec("model.embed_tokens.weight", (vocab, hidden), embedding_std)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield _norm(prefix + "input_layernorm.weight", hidden, scales)
        yield from _attention(prefix + "self_attn.", config, scales)
        yield _norm(prefix + "post_attention_layernorm.weight", hidden, scales)
        yield from _feed_forward(prefix, config, scales)
    # A tied head shares the embedding's scale, so the last norm has to spread the logits.
    head_gain = scales.logit / (sqrt(hidden) * scales.tied_embedding) if tied else 1.0
    yield _norm("model.norm.weight", hidden, scales, head_gain)
    if not tied:
        std = scales.logit / sqrt(hidden)
        yield TensorSpec("lm_head.weight", (vocab, hidden), std, quiet_rows=NUM_QUIET_TOKENS)


def _norm(name: str, size: int, scales: Scales, mean: float = 1.0) -> TensorSpec:
    return TensorSpec(name, (size,), mean * scales.norm_jitter, mean)


def _linear(name: str, outputs: int, inputs: int, gain: float) -> TensorSpec:
    """Rows that turn independent inputs of size 1 into outputs of size `gain`."""
    return TensorSpec(name, (outputs, inputs), gain / sqrt(inputs))


def _attention(prefix: str, config: dict[str, Any], scales: Scales) -> Iterator[TensorSpec]:
    hidden, num_heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // num_heads
    query, key_value = num_heads * head_dim, config["num_key_value_heads"] * head_dim
    model_type = config["model_type"]
    normed = model_type in ("qwen3", "qwen3_moe")
    # A score is the mean product of q and k times sqrt(head_dim): its size is that of q times k.
    size = sqrt(scales.attention_score(config["num_hidden_layers"]))
    yield _linear(prefix + "q_proj.weight", query, hidden, 1.0 if normed else size)
    yield _linear(prefix + "k_proj.weight", key_value, hidden, 1.0 if normed else size)
    yield _linear(prefix + "v_proj.weight", key_value, hidden, 1.0)
    if model_type == "qwen2" or config.get("attention_bias"):
        yield TensorSpec(prefix + "q_proj.bias", (query,), scales.qk_bias)
        yield TensorSpec(prefix + "k_proj.bias", (key_value,), scales.qk_bias)
        yield TensorSpec(prefix + "v_proj.bias", (key_value,), scales.v_bias)
    yield _linear(prefix + "o_proj.weight", hidden, query, scales.attention)
    if config.get("attention_bias") and model_type != "qwen2":
        yield TensorSpec(prefix + "o_proj.bias", (hidden,), scales.v_bias)
    if normed:
        yield _norm(prefix + "q_norm.weight", head_dim, scales, size)
        yield _norm(prefix + "k_norm.weight", head_dim, scales, size)


def _feed_forward(prefix: str, config: dict[str, Any], scales: Scales) -> Iterator[TensorSpec]:
    hidden, model_type = config["hidden_size"], config["model_type"]
    if model_type == "mixtral":
        block, names = prefix + "block_sparse_moe.", ("w1", "w3", "w2")
        num_experts, width = config["num_local_experts"], config["intermediate_size"]
    elif model_type == "qwen3_moe":
        block, names = prefix + "mlp.", ("gate_proj", "up_proj", "down_proj")
        num_experts, width = config["num_experts"], config["moe_intermediate_size"]
    else:
        names = ("gate_proj", "up_proj", "down_proj")
        yield from _mlp(prefix + "mlp.", names, hidden, config["intermediate_size"], scales.mlp)
        return
    yield _linear(block + "gate.weight", num_experts, hidden, scales.router)
    for expert in range(num_experts):
        yield from _mlp(f"{block}experts.{expert}.", names, hidden, width, scales.mlp)


def _mlp(
    prefix: str, names: tuple[str, str, str], hidden: int, width: int, gain: float
) -> Iterator[TensorSpec]:
    gate, up, down = names
    yield _linear(f"{prefix}{gate}.weight", width, hidden, 1.0)
    yield _linear(f"{prefix}{up}.weight", width, hidden, 1.0)
    # silu(gate) * up of two unit normals has a root mean square of 0.6.
    yield _linear(f"{prefix}{down}.weight", hidden, width, gain / 0.6)
