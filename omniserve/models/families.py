"""What differs between the supported architectures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omniserve.errors import CheckpointError

Window = int | None


def _no_window(config: Any, layer: int) -> Window:
    return None


def _every_layer_window(config: Any, layer: int) -> Window:
    return getattr(config, "sliding_window", None)


def _layer_type_window(config: Any, layer: int) -> Window:
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None or layer_types[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: its name in config.json and where its sliding window applies."""

    architecture: str
    window: Callable[[Any, int], Window]


FAMILIES = {
    family.architecture: family
    for family in (
        Family("LlamaForCausalLM", _no_window),
        Family("MistralForCausalLM", _every_layer_window),
        Family("Qwen2ForCausalLM", _layer_type_window),
        Family("Qwen3ForCausalLM", _layer_type_window),
        Family("Qwen3MoeForCausalLM", _every_layer_window),
        Family("MixtralForCausalLM", _every_layer_window),
    )
}


def family_of(config: Any) -> Family:
    """The family of a transformers config.

    Raises:
        CheckpointError: the architecture is not supported; the message lists those that are.
    """
    architectures = getattr(config, "architectures", None) or ["(none)"]
    family = FAMILIES.get(architectures[0])
    if family is None:
        raise CheckpointError(
            f"config.json: architecture {architectures[0]!r} is not supported; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return family
