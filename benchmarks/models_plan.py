"""What the benchmark of two models measures."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from models_options import Models, Settings

from omniserve.bench.colocate.frames import WHOLE, frame
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.prepare import Prepared, cache_directory
from omniserve.bench.colocate.scene import ModelPaths, Scene
from omniserve.synthetic.create import write_checkpoint

DTYPE = "bfloat16"
TINY_HEAD_DIM = 32
"""Tiny models differ in it by architecture, and their KV has to be of one size."""


@dataclass(frozen=True, slots=True)
class ModelsPlan:
    """Equal plans may be continued by each other."""

    comparison: Plan
    settings: Settings

    @property
    def with_vllm(self) -> bool:
        return self.comparison.vllm is not None

    @property
    def num_be(self) -> int:
        return self.comparison.backlog.num_requests

    def as_data(self) -> dict[str, object]:
        """One level deep, so that plans can be told apart by what differs."""
        held = {**msgspec.to_builtins(self.comparison), **msgspec.to_builtins(self.settings)}
        return {name: held[name] for name in held if name not in ("scenes", "control")}


def paths_of(models: Models) -> ModelPaths:
    """Makes those that are missing."""
    return ModelPaths(_made(models.ls_arch, models.preset), _made(models.be_arch, models.preset))


def scene_of(prepared: Prepared) -> Scene:
    """All cores are everybody's, and there is memory for all that is asked for: what is compared is
    the time of the cores."""
    plan = prepared.plan
    paths = ModelPaths(Path(plan.ls_model), Path(plan.be_model))
    return Scene(frame(WHOLE), "two", plan.backlog.num_requests, prepared.memory, paths)


def _made(arch: str, preset: str) -> Path:
    path = cache_directory() / f"models-{arch}-{preset}-{DTYPE}"
    if not (path / "config.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        overrides = {"head_dim": TINY_HEAD_DIM} if preset == "tiny" else None
        write_checkpoint(path, arch=arch, preset=preset, dtype=DTYPE, overrides=overrides)
    return path
