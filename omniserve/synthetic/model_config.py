"""config.json and generation_config.json of a synthetic model."""

from typing import Any

from omniserve.synthetic.presets import ARCHITECTURES, ModelShape
from omniserve.synthetic.tokenizer import BOS_ID, EOS_ID, IM_END_ID


def model_config(
    arch: str, shape: ModelShape, dtype: str, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of config.json; `overrides` replace keys of it one by one."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
        "use_cache": True,
    }
    config |= _peculiarities(arch, shape)
    return config | (overrides or {})


def _peculiarities(arch: str, shape: ModelShape) -> dict[str, Any]:
    """Keys that only some architectures have."""
    head_dim = {"head_dim": shape.head_dim}
    if arch == "qwen2":
        return {"use_sliding_window": False, "sliding_window": None}
    if arch == "qwen3":
        return head_dim | {"attention_bias": False, "use_sliding_window": False}
    if arch == "mistral":
        return head_dim | {"sliding_window": None}
    if arch == "mixtral":
        return head_dim | {
            "sliding_window": None,
            "num_local_experts": shape.num_experts,
            "num_experts_per_tok": shape.num_experts_per_token,
            "output_router_logits": False,
        }
    if arch == "qwen3_moe":
        return head_dim | {
            "attention_bias": False,
            "num_experts": shape.num_experts,
            "num_experts_per_tok": shape.num_experts_per_token,
            "moe_intermediate_size": shape.intermediate_size,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "output_router_logits": False,
        }
    return head_dim | {"attention_bias": False, "mlp_bias": False}


def generation_config() -> dict[str, Any]:
    """The content of generation_config.json: greedy, ending where a text or a chat turn ends."""
    return {
        "bos_token_id": BOS_ID,
        "eos_token_id": [EOS_ID, IM_END_ID],
        "pad_token_id": EOS_ID,
        "do_sample": False,
    }
