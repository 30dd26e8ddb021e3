"""Layers that several models share are run once for the steps of all, and every token is right."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from engine_builders import GREEDY, make_engine, make_model_settings, make_request
from joint_builders import riding_family
from piggyback_builders import ARCHITECTURES
from piggyback_trials import Trials
from weight_builders import write_family

from omniserve.engine.core import Engine
from omniserve.engine.executor import Executor
from omniserve.engine.joint_layers import JointLayers, Rider, num_shared_layers
from omniserve.models.decoder import DecoderLayer
from omniserve.models.lora import RowDelta
from omniserve.synthetic.create import write_checkpoint

NAMES = ("base", "finetune-1", "finetune-2")
WAYS = ("off", "forced", "mixed")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_random_rides_equal_transformers(tmp_path: Path, arch: str) -> None:
    """Rows of the device and of lanes, of both classes, with every other model's beside them."""
    with riding_family(tmp_path, arch, ["forced", "mixed"]) as (fleet, rides):
        trials = Trials(fleet, prompts_seed=1)
        rng = random.Random(arch)
        for seed in range(3):
            rides.num_riders.clear()
            trials.run([(name, rng.choice(WAYS)) for name in NAMES], seed)
            assert rides.num_riders.total() > 0
        trials.run([(name, way) for name in NAMES for way in WAYS], 99)
        assert max(rides.num_riders) > 2
        assert trials.num_piggybacked > 0
        assert rides.joint.num_rows > rides.joint.num_batches > 0


def engine_of(directory: Path, layers_from: float = 0.75) -> Engine:
    """A base and a fine-tune of four layers."""
    paths = write_family(directory, "llama", num_finetunes=1, layers_from=layers_from)
    return make_engine(*(make_model_settings(path, name=path.name) for path in paths))


def executor_of(engine: Engine, name: str) -> Executor:
    return engine.runtime(name)._executor


@pytest.mark.parametrize(("layers_from", "shared"), [(0.0, 0), (0.3, 1), (0.75, 3)])
def test_the_shared_layers_are_the_first_equal_ones(
    tmp_path: Path, layers_from: float, shared: int
) -> None:
    engine = engine_of(tmp_path, layers_from)
    base, finetune = executor_of(engine, "base"), executor_of(engine, "finetune-1")
    assert num_shared_layers([base, finetune]) == shared
    assert num_shared_layers([base]) == 4


def test_strangers_share_nothing(tmp_path: Path) -> None:
    paths = [
        write_checkpoint(tmp_path / str(seed), arch="llama", preset="tiny", seed=seed)
        for seed in (1, 2)
    ]
    engine = make_engine(*(make_model_settings(path, name=path.name) for path in paths))
    assert num_shared_layers([executor_of(engine, path.name) for path in paths]) == 0


def test_a_shared_layer_runs_one_batch_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tmp_path)
    rows: list[tuple[DecoderLayer, int]] = []
    pre = DecoderLayer.pre

    def counting(
        self: DecoderLayer,
        residual: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        deltas: Sequence[RowDelta] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows.append((self, len(residual)))
        return pre(self, residual, rotary, deltas)

    monkeypatch.setattr(DecoderLayer, "pre", counting)
    engine.add(make_request("urgent", range(30, 40), GREEDY, model="base"))
    engine.add(make_request("patient", range(50, 70), GREEDY, "best_effort", model="finetune-1"))
    runtimes = [engine.runtime(name) for name in ("base", "finetune-1")]
    joint = JointLayers()
    with torch.inference_mode():
        steps = [runtime.begin() for runtime in runtimes]
        riders = [
            Rider(runtime._executor, step.cursor)
            for runtime, step in zip(runtimes, steps, strict=True)
            if step is not None
        ]
        joint.advance_together(riders, 3)
        assert [count for _, count in rows] == [30, 30, 30]
        assert (joint.num_batches, joint.num_rows) == (3, 90)
        assert [layer for layer, _ in rows] == list(executor_of(engine, "base").layers[:3])
        for runtime, step in zip(runtimes, steps, strict=True):
            assert step is not None
            runtime.advance(step, 4)
            (output,) = runtime.finish(step)
            assert len(output.token_ids) == 1
    assert [count for _, count in rows[3:]] == [10, 20]


def test_steps_that_are_not_side_by_side_do_not_ride(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    engine.add(make_request("a", range(30, 40), GREEDY, model="base"))
    engine.add(make_request("b", range(30, 40), GREEDY, model="finetune-1"))
    riders = []
    with torch.inference_mode():
        for name in ("base", "finetune-1"):
            step = engine.runtime(name).begin()
            assert step is not None
            riders.append(Rider(executor_of(engine, name), step.cursor))
        with pytest.raises(AssertionError, match="not shared"):
            JointLayers().advance_together(riders, 4)
        riders[0].executor.advance(riders[0].cursor, 1)
        with pytest.raises(AssertionError, match="not side by side"):
            JointLayers().advance_together(riders, 3)
