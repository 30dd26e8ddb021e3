"""Builders for LoRA adapters, and their oracle: a checkpoint with merged weights."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from engine_builders import make_model_settings
from safetensors.torch import load_file, save_file

from omniserve.settings import ModelSettings
from omniserve.synthetic.adapter import write_adapter
from omniserve.synthetic.create import write_checkpoint

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def merged(base: Path, adapter: Path, out: Path, scales: Mapping[str, float] | None = None) -> Path:
    """A checkpoint of W + scale * B A; `scales` are by module, else as adapter_config.json says."""
    config = json.loads((adapter / CONFIG).read_text())
    shutil.copytree(base, out)
    weights, deltas = load_file(out / "model.safetensors"), load_file(adapter / WEIGHTS)
    for name, a in deltas.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        b = deltas[name.replace("lora_A", "lora_B")]
        scale = config["lora_alpha"] / config["r"] if scales is None else scales[module]
        weights[f"{module}.weight"] += (scale * b.double() @ a.double()).to(b.dtype)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def write_adapted(
    directory: Path, arch: str, num_adapters: int = 2, **options: Any
) -> tuple[Path, list[Path]]:
    """A base, and adapters of it that differ in rank and in what they change; the first all."""
    options = {"preset": "tiny"} | options
    base = write_checkpoint(directory / "base", arch=arch, **options)
    targets = [
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ("k_proj", "v_proj", "up_proj"),
        ("q_proj", "o_proj", "down_proj"),
    ]
    adapters = [
        write_adapter(
            base,
            directory / f"adapter-{index}",
            rank=4 * index,
            seed=index,
            targets=targets[index - 1],
        )
        for index in range(1, num_adapters + 1)
    ]
    return base, adapters


def edit_config(adapter: Path, **changes: object) -> None:
    """Of a copy: `None` takes a key away."""
    path = adapter / CONFIG
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(
    adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    """`change` changes the tensors, or returns others."""
    tensors = load_file(adapter / WEIGHTS)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, adapter / WEIGHTS)


def adapter_settings(adapter: Path, base: Path, **fields: Any) -> ModelSettings:
    settings = make_model_settings(adapter, name=fields.pop("name", adapter.name))
    return replace(settings, base=str(base), **fields)
