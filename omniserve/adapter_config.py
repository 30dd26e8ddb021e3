"""adapter_config.json of a LoRA adapter in PEFT's format: what of it is served, and which
projections of a base it means."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omniserve.checkpoint import read_json
from omniserve.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"
ALL_LINEAR = "all-linear"
_MAX_RANK = 1 << 16
_MAX_ALPHA = 1e9
"""Far beyond any that is trained, and its products are still numbers to every element type."""
_REFUSED = {
    "use_dora": "DoRA is not supported",
    "use_qalora": "QALoRA is not supported",
    "lora_bias": "biases of adapters are not supported",
    "fan_in_fan_out": "transposed weights are not supported",
    "modules_to_save": "modules that an adapter replaces as a whole are not supported",
    "trainable_token_indices": "changed embeddings are not supported",
    "layer_replication": "repeated layers are not supported",
    "target_parameters": "adapters of parameters, as of experts, are not supported",
    "alora_invocation_tokens": "adapters that are switched on amid a prompt are not supported",
    "arrow_config": "routing between adapters is not supported",
}
"""Keys that have to be unset, false or empty."""
_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it was: others take a part out of it."""
_LAYER = re.compile(r".*\.layers\.(\d+)\.")
_MAX_EXPRESSION_CHARS = 4000
Number = TypeVar("Number", int, float)


class _Expression(Protocol):
    def fullmatch(self, text: str) -> object | None: ...


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What adapter_config.json says, checked."""

    path: Path
    rank: int
    alpha: float
    is_rank_stabilised: bool
    """rsLoRA: the scale is alpha / sqrt(rank)."""
    target_modules: str | tuple[str, ...]
    """An expression, or names and ends of names."""
    exclude_modules: str | tuple[str, ...]
    layers: frozenset[int] | None
    """None: all."""
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_hint: str
    """What its base was called where it was trained; may be empty."""

    @classmethod
    def read(cls, directory: Path) -> "AdapterConfig":
        """Raises CheckpointError, which names the key that is not supported."""
        path = directory / CONFIG_NAME
        config = read_json(path)
        _check_kind(path, config)
        targets = _names(path, config, "target_modules")
        if not targets:
            raise CheckpointError(f"{path}: target_modules: names nothing")
        hint = config.get("base_model_name_or_path")
        return cls(
            path,
            rank=_rank(path, "r", config.get("r", 8)),
            alpha=_alpha(path, "lora_alpha", config.get("lora_alpha", 8)),
            is_rank_stabilised=bool(config.get("use_rslora")),
            target_modules=targets,
            exclude_modules=_names(path, config, "exclude_modules"),
            layers=_layers(path, config, targets),
            rank_pattern=_pattern(path, config, "rank_pattern", _rank),
            alpha_pattern=_pattern(path, config, "alpha_pattern", _alpha),
            base_hint=hint if isinstance(hint, str) else "",
        )

    def targets(self, linears: Iterable[str]) -> dict[str, tuple[int, float]]:
        """Rank and scale of those of the base's linear layers that the adapter changes.

        `linears` are names of modules; all-linear means all of them. Raises CheckpointError for
        expressions that cannot be matched.
        """
        is_target = self._matcher("target_modules", self.target_modules)
        is_excluded = self._matcher("exclude_modules", self.exclude_modules)
        ranks = self._by_suffix("rank_pattern", self.rank_pattern)
        alphas = self._by_suffix("alpha_pattern", self.alpha_pattern)
        found = {}
        for name in linears:
            if is_excluded.of(name) or not self._means(name, is_target):
                continue
            rank = next((rank for suffix, rank in ranks if suffix.fullmatch(name)), self.rank)
            alpha = next((to for suffix, to in alphas if suffix.fullmatch(name)), self.alpha)
            divisor = sqrt(rank) if self.is_rank_stabilised else rank
            found[name] = (rank, alpha / divisor)
        return found

    def _matcher(self, key: str, wanted: str | tuple[str, ...]) -> "_Matcher":
        if isinstance(wanted, str) and wanted and wanted != ALL_LINEAR:
            return _Matcher(frozenset(), self._compiled(key, wanted))
        return _Matcher(frozenset(wanted if isinstance(wanted, tuple) else ()), None)

    def _by_suffix(
        self, key: str, values: Mapping[str, Number]
    ) -> list[tuple[_Expression, Number]]:
        """Expressions are of the end of a name, from a dot on, or of all of it."""
        return [(self._compiled(key, f"(.*\\.)?({each})"), to) for each, to in values.items()]

    def _compiled(self, key: str, expression: str) -> _Expression:
        """By RE2: the expression is a stranger's, and Python's matcher may take for ever."""
        if len(expression) > _MAX_EXPRESSION_CHARS:
            problem = f"longer than {_MAX_EXPRESSION_CHARS} characters"
            raise CheckpointError(f"{self.path}: {key}: {problem}")
        # An engine in somebody's own process does without, unless it has adapters.
        import re2

        options = re2.Options()
        options.log_errors = False
        try:
            compiled: _Expression = re2.compile(expression, options)
        except re2.error as error:
            problem = error.args[0].decode(errors="replace")
            text = f"{self.path}: {key}: {expression!r:.80}: {problem:.200}"
            raise CheckpointError(text) from None
        except UnicodeEncodeError:
            # JSON has names for halves of characters.
            problem = "holds half a character"
            raise CheckpointError(f"{self.path}: {key}: {expression!r:.80}: {problem}") from None
        return compiled

    def _means(self, name: str, is_target: "_Matcher") -> bool:
        if self.target_modules == ALL_LINEAR or name in is_target.names:
            return True
        if not is_target.of(name):
            return False
        layer = _LAYER.match(name)
        return self.layers is None or (layer is not None and int(layer[1]) in self.layers)


@dataclass(frozen=True, slots=True)
class _Matcher:
    names: frozenset[str]
    expression: _Expression | None

    def of(self, name: str) -> bool:
        if self.expression is not None:
            return self.expression.fullmatch(name) is not None
        parts = name.split(".")
        return any(".".join(parts[first:]) in self.names for first in range(len(parts)))


def _check_kind(path: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind!r:.80}; only LORA is supported")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise CheckpointError(f"{path}: task_type is {task!r:.80}; only CAUSAL_LM is supported")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{path}: {key}: {reason}")
    strange = [key for key in config if key.startswith("use_") and key != "use_rslora"]
    for key in strange:
        if config[key]:
            raise CheckpointError(f"{path}: {key}: is not supported")
    bias = config.get("bias", "none")
    if bias != "none":
        raise CheckpointError(f"{path}: bias is {bias!r:.80}; only 'none' is supported")
    init = config.get("init_lora_weights", True)
    if not any(init is each or (isinstance(each, str) and init == each) for each in _KEEP_THE_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {init!r:.80}, which changes the base; have PEFT convert "
            "the adapter to plain LoRA as it saves it"
        )


def _names(path: Path, config: dict[str, Any], key: str) -> str | tuple[str, ...]:
    value = config.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return ALL_LINEAR if value.lower() == ALL_LINEAR else value
    if isinstance(value, list) and all(isinstance(each, str) and each for each in value):
        return tuple(value)
    raise CheckpointError(f"{path}: {key} is {value!r:.80}, not a text or a list of names")


def _layers(
    path: Path, config: dict[str, Any], targets: str | Sequence[str]
) -> frozenset[int] | None:
    value, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if pattern not in (None, [], "layers", ["layers"]):
        raise CheckpointError(f"{path}: layers_pattern is {pattern!r:.80}; only 'layers' can be")
    if value is None:
        return None
    if isinstance(targets, str):
        raise CheckpointError(f"{path}: layers_to_transform: target_modules has to be a list then")
    layers = value if isinstance(value, list) else [value]
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise CheckpointError(f"{path}: layers_to_transform is {value!r:.80}, not layers by number")
    return frozenset(layers) or None


def _rank(path: Path, key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise CheckpointError(f"{path}: {key} is {value!r:.80}, not a whole number above 0")
    return value


def _alpha(path: Path, key: str, value: object) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        # A whole number of JSON may be larger than any float.
        with suppress(OverflowError):
            # False for what is no number as well.
            if abs(number := float(value)) <= _MAX_ALPHA:
                return number
    problem = f"not a number from {-_MAX_ALPHA:g} to {_MAX_ALPHA:g}"
    raise CheckpointError(f"{path}: {key} is {value!r:.80}, {problem}")


def _pattern(path: Path, config: dict[str, Any], key: str, check: Any) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} is {value!r:.80}, not a mapping")
    return {name: check(path, f"{key}: {name!r:.80}", each) for name, each in value.items()}
