"""Dimensions of the models that can be made, per preset and architecture. Standard library only."""

from dataclasses import dataclass, replace

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
"""An architecture's name on the command line, also its `model_type` -> its class name."""

DTYPES = ("float32", "bfloat16", "float16")

BASE_TOKENIZER_SIZE = 4096


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Every dimension of one model; `num_experts` is 0 for a dense one."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width of the MLP, or of one expert where there are experts."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float
    vocab_size: int = BASE_TOKENIZER_SIZE
    tokenizer_size: int = BASE_TOKENIZER_SIZE
    """Tokens that the tokenizer can produce; ids from here to `vocab_size` are padding."""
    num_experts: int = 0
    num_experts_per_token: int = 0


_TINY = ModelShape(
    num_layers=3,
    hidden_size=64,
    intermediate_size=192,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=4096,
    rope_theta=10_000.0,
    vocab_size=512,
    tokenizer_size=512,
)
_SMALL = ModelShape(
    num_layers=4,
    hidden_size=512,
    intermediate_size=1536,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    max_positions=8192,
    rope_theta=100_000.0,
)
_100M = ModelShape(
    num_layers=8,
    hidden_size=1024,
    intermediate_size=3072,
    num_heads=16,
    num_kv_heads=8,
    head_dim=64,
    max_positions=32_768,
    rope_theta=1_000_000.0,
)
_8B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14_336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=32_768,
    rope_theta=1_000_000.0,
    vocab_size=32_768,
)

PRESETS = ("tiny", "small", "100m", "8b")

_BASE = {"tiny": _TINY, "small": _SMALL, "100m": _100M, "8b": _8B}

# What differs from the base of a preset. The experts of a small model share out the width of its
# dense MLP, so that the number of parameters stays near the name. The tiny Qwen3 models have heads
# wider than hidden_size / num_heads, as some of the real ones do.
_CHANGES: dict[tuple[str, str], dict[str, int | float]] = {
    ("tiny", "qwen3"): {"head_dim": 32},
    ("tiny", "qwen3_moe"): {
        "head_dim": 32,
        "intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_token": 2,
    },
    ("tiny", "mixtral"): {"intermediate_size": 96, "num_experts": 4, "num_experts_per_token": 2},
    ("small", "qwen3_moe"): {
        "intermediate_size": 192,
        "num_experts": 8,
        "num_experts_per_token": 2,
    },
    ("small", "mixtral"): {"intermediate_size": 192, "num_experts": 8, "num_experts_per_token": 2},
    ("100m", "qwen3_moe"): {"intermediate_size": 384, "num_experts": 8, "num_experts_per_token": 2},
    ("100m", "mixtral"): {"intermediate_size": 384, "num_experts": 8, "num_experts_per_token": 2},
    ("8b", "llama"): {"vocab_size": 128_256, "max_positions": 8192, "rope_theta": 500_000.0},
    ("8b", "qwen2"): {
        "num_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_heads": 28,
        "num_kv_heads": 4,
        "vocab_size": 152_064,
    },
    ("8b", "qwen3"): {
        "num_layers": 36,
        "intermediate_size": 12_288,
        "max_positions": 40_960,
        "vocab_size": 151_936,
    },
    ("8b", "qwen3_moe"): {
        "num_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 768,
        "num_kv_heads": 4,
        "max_positions": 40_960,
        "vocab_size": 151_936,
        "num_experts": 64,
        "num_experts_per_token": 8,
    },
    ("8b", "mixtral"): {
        "num_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_heads": 16,
        "num_experts": 8,
        "num_experts_per_token": 2,
    },
}


def shape_of(preset: str, arch: str) -> ModelShape:
    """The dimensions of `arch` at `preset`; KeyError where either is unknown."""
    if arch not in ARCHITECTURES:
        raise KeyError(arch)
    return replace(_BASE[preset], **_CHANGES.get((preset, arch), {}))  # type: ignore[arg-type]
