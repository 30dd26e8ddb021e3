"""One engine that serves many small models, each in its own way of piggybacking.

They share one host process, so hundreds of schedules cost one start of it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine_builders import make_engine, make_model_settings

from cpu_attn.host import HostAttention
from omniserve.settings import ModelSettings, ModelStats, PiggybackSettings
from omniserve.synthetic.create import write_checkpoint

BLOCK_SIZE = 16
MAX_MODEL_LEN = 112
"""Longest prompt and output of a schedule, in tokens: 7 blocks."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 4, "head_dim": 32},
    "qwen3": {"num_hidden_layers": 3},
    "qwen3_moe": {"num_hidden_layers": 2},
    "mistral": {"num_hidden_layers": 3, "head_dim": 32, "sliding_window": 24},
}
"""Changes to config.json: as many layers as differ, and one width of heads for one kernel."""


@dataclass(frozen=True)
class Regime:
    """A way of serving. Blocks hold BLOCK_SIZE tokens of all layers."""

    device_blocks: int = 64
    host_blocks: int = 256
    piggyback: PiggybackSettings | None = PiggybackSettings(host_kv_bytes=0, when="always")
    prefix_caching: bool = True


def _piggyback(**fields: Any) -> PiggybackSettings:
    return replace(PiggybackSettings(host_kv_bytes=0, when="always"), **fields)


REGIMES: dict[str, Regime] = {
    "off": Regime(piggyback=None),
    # Best-effort decodes leave as soon as their prompt is done.
    "forced": Regime(piggyback=_piggyback(max_resident_decodes=0)),
    "forced_one_row": Regime(
        piggyback=_piggyback(
            max_resident_decodes=0, max_lane_rows=1, max_lane_rows_beside_ls=1, binding_points=2
        )
    ),
    # Some stay and some leave; what the engine thinks of its worth counts as well.
    "mixed": Regime(
        piggyback=_piggyback(max_resident_decodes=2, max_lane_rows_beside_ls=3, binding_points=99)
    ),
    # The device holds little more than two sequences, so victims leave, and may come back.
    "short_of_device": Regime(
        device_blocks=16, piggyback=_piggyback(max_resident_decodes=3, binding_points=3)
    ),
    # Lanes and host blocks run out: waiting, recomputing, leaving and returning at once.
    "short_of_all": Regime(
        device_blocks=10,
        host_blocks=12,
        piggyback=_piggyback(
            max_offloaded_requests=4, max_lane_rows=3, max_lane_rows_beside_ls=2, binding_points=2
        ),
    ),
    "no_prefixes": Regime(
        device_blocks=20, piggyback=_piggyback(max_resident_decodes=1), prefix_caching=False
    ),
}


def write_checkpoints(
    directory: Path, architectures: Iterable[str], dtype: str = "float32"
) -> dict[str, Path]:
    """A small checkpoint of each architecture, by its name."""
    return {
        arch: write_checkpoint(
            directory / arch,
            arch=arch,
            preset="tiny",
            dtype=dtype,
            seed=7,
            overrides=ARCHITECTURES[arch],
        )
        for arch in architectures
    }


def model_name(arch: str, regime: str) -> str:
    return f"{arch}.{regime}"


def settings_of(arch: str, path: Path, regime_name: str, dtype: str = "float32") -> ModelSettings:
    """Settings of a model of `arch`; binding points beyond its layers are cut to as many."""
    regime = REGIMES[regime_name]
    block_bytes = _block_bytes(path, dtype)
    settings = make_model_settings(
        path,
        name=model_name(arch, regime_name),
        device_kv_bytes=regime.device_blocks * block_bytes,
        block_size=BLOCK_SIZE,
        max_step_tokens=48,
        max_running_requests=12,
        best_effort_tokens_beside_ls=24,
    )
    piggyback = regime.piggyback
    if piggyback is not None:
        piggyback = replace(
            piggyback,
            host_kv_bytes=regime.host_blocks * block_bytes,
            binding_points=min(piggyback.binding_points, _config(path)["num_hidden_layers"]),
        )
    return replace(
        settings,
        dtype=dtype,  # type: ignore[arg-type]
        max_model_len=MAX_MODEL_LEN,
        prefix_caching=regime.prefix_caching,
        piggyback=piggyback,
    )


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
    return config


def _block_bytes(path: Path, dtype: str) -> int:
    config = _config(path)
    item_bytes = 4 if dtype == "float32" else 2
    per_layer = 2 * config["num_key_value_heads"] * config["head_dim"] * item_bytes
    return int(config["num_hidden_layers"] * per_layer * BLOCK_SIZE)


class Fleet:
    """The engine with a model for every pair asked for, and what tests ask of it as a whole."""

    def __init__(
        self,
        checkpoints: dict[str, Path],
        regimes: Iterable[str],
        dtype: str = "float32",
        pipeline_depth: int = 1,
        threads: int = 1,
    ) -> None:
        """Loads `off`, whose answers are the reference, and `regimes` of every checkpoint."""
        self.checkpoints = checkpoints
        self.at_layer_boundary: Callable[[], None] = lambda: None
        """Called amid best-effort steps; may add and abort."""
        self.engine = make_engine(
            *(
                settings_of(arch, path, regime, dtype)
                for arch, path in checkpoints.items()
                for regime in ("off", *regimes)
            ),
            poll_arrivals=lambda: self.at_layer_boundary(),
            pipeline_depth=pipeline_depth,
            threads=threads,
        )

    @property
    def host(self) -> HostAttention:
        """The host attention process of all models."""
        link = self.engine._host
        assert link is not None
        return link.host

    def stats(self, arch: str, regime: str) -> ModelStats:
        """Counters of one model."""
        name = model_name(arch, regime)
        return next(stats for stats in self.engine.stats() if stats.name == name)

    def check_integrity(self) -> None:
        """Raises where books disagree; at any step boundary."""
        self.engine.check_integrity()
        for stats in self.engine.stats():
            if (piggyback := stats.piggyback) is not None:
                assert sum(piggyback.rows_on_host_by_layer) == piggyback.num_on_host
                assert sum(piggyback.rows_ready_by_layer) == piggyback.num_ready_rows

    def settle(self) -> None:
        """Lets the host finish what nobody waits for any more; then nothing may be left."""
        while any(not _is_quiet(stats) for stats in self.engine.stats()):
            self.engine.step()
        assert not self.engine.has_unfinished
        self.check_integrity()
        for stats in self.engine.stats():
            assert _leftovers(stats) == {}, stats.name

    def close(self) -> None:
        self.engine.close()


@contextmanager
def running_fleet(
    checkpoints: dict[str, Path], regimes: Iterable[str], **fields: Any
) -> Iterator[Fleet]:
    """A Fleet that is closed at the end."""
    fleet = Fleet(checkpoints, regimes, **fields)
    try:
        yield fleet
    finally:
        fleet.close()


def _is_quiet(stats: ModelStats) -> bool:
    piggyback = stats.piggyback
    return piggyback is None or not (piggyback.num_on_host or piggyback.host_kv_used_bytes)


def _leftovers(stats: ModelStats) -> dict[str, int]:
    """What is not as empty as it must be when no request is left."""
    counts = {
        "running": sum(stats.running.values()),
        "waiting": sum(stats.waiting.values()),
        "kv_used_bytes": stats.kv_used_bytes,
    }
    if stats.piggyback is not None:
        names = ("num_offloaded", "num_ready_rows", "num_on_host", "residual_bytes")
        counts |= {name: getattr(stats.piggyback, name) for name in names}
        counts["host_kv_used_bytes"] = stats.piggyback.host_kv_used_bytes
    return {name: count for name, count in counts.items() if count}
