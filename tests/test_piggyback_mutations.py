"""An engine that piggybacks wrongly is found: each way to break it gives wrong tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from piggyback_builders import REGIMES, running_fleet, write_checkpoints
from piggyback_trials import Trials
from torch import Tensor

from cpu_attn.host import HostAttention
from omniserve.piggyback.kv_swapper import KvSwapper
from omniserve.piggyback.lane_book import LaneBook
from omniserve.piggyback.lane_exchange import SharedMemoryExchange
from omniserve.piggyback.lane_rows import LaneRows
from omniserve.piggyback.lane_run import LaneRun
from omniserve.piggyback.runtime import Piggyback


def swapped_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two rows that join a layer together come with each other's residual."""
    join = SharedMemoryExchange.join

    def swapping(self: SharedMemoryExchange, rows: LaneRows, segment: int) -> tuple[Tensor, Tensor]:
        residuals, attended = join(self, rows, segment)
        if len(residuals) > 1:
            residuals[:2] = residuals[:2].flip(0)
        return residuals, attended

    monkeypatch.setattr(SharedMemoryExchange, "join", swapping)


def stale_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that leave behind any layer but the first forget to save their residual."""
    leave = SharedMemoryExchange.leave

    def forgetting(
        self: SharedMemoryExchange, rows: LaneRows, layer: int, residual: Tensor, *qkv: Tensor
    ) -> None:
        kept = self._residuals.clone()
        if layer == 0:
            leave(self, rows, layer, residual, *qkv)
        else:
            leave(self, rows, layer, kept[rows.device_lanes_of(layer)], *qkv)

    monkeypatch.setattr(SharedMemoryExchange, "leave", forgetting)


def lost_kv_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host writes a token over the one before it."""
    submit = HostAttention.submit_many

    def shorter(
        self: HostAttention, model: int, slots: Any, layers: Any, contexts: Any, q_lens: Any = 1
    ) -> None:
        submit(self, model, slots, layers, np.maximum(np.asarray(contexts) - 1, 1), q_lens)

    monkeypatch.setattr(HostAttention, "submit_many", shorter)


def stale_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane keeps the blocks of the request that had it before, as many as the new one needs."""
    set_block_table = HostAttention.set_block_table
    tables: dict[tuple[int, int], list[int]] = {}

    def keeping(self: HostAttention, model: int, slot: int, block_ids: Any, first: int = 0) -> None:
        old = [] if first else tables.get((model, slot), [])
        kept = [*old[: len(block_ids)], *block_ids[len(old) :]]
        tables[model, slot] = tables.get((model, slot), [])[:first] + kept
        set_block_table(self, model, slot, kept, first)

    monkeypatch.setattr(HostAttention, "set_block_table", keeping)


def wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result joins one layer further on than it was made for, where there is one."""
    attended = LaneBook.attended

    def further(self: LaneBook, lanes: Any, layers: Any) -> None:
        attended(self, lanes, layers)
        self._layer[lanes] = np.minimum(self._layer[lanes] + 1, self.num_layers - 1)

    monkeypatch.setattr(LaneBook, "attended", further)


def earlier_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row joins with what the host last said of its lane: as if it did not wait."""
    leave = SharedMemoryExchange.leave
    join = SharedMemoryExchange.join

    def saving(self: Any, rows: LaneRows, layer: int, *tensors: Tensor) -> None:
        self.before = self._slots.out.clone()
        leave(self, rows, layer, *tensors)

    def old(self: Any, rows: LaneRows, segment: int) -> tuple[Tensor, Tensor]:
        residuals, attended = join(self, rows, segment)
        before = getattr(self, "before", self._slots.out)
        return residuals, before.index_select(0, rows.device_lanes_of(segment))

    monkeypatch.setattr(SharedMemoryExchange, "leave", saving)
    monkeypatch.setattr(SharedMemoryExchange, "join", old)


def lost_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every request that leaves, the first block is not copied."""
    begin_out = KvSwapper.begin_out

    def all_but_one(self: KvSwapper, key: str, device: Any, host: Any) -> None:
        begin_out(self, key, device[1:], host[1:])

    monkeypatch.setattr(KvSwapper, "begin_out", all_but_one)


def lost_on_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every request that returns, the last block is not copied."""
    begin_in = KvSwapper.begin_in

    def all_but_one(self: KvSwapper, key: str, host: Any, device: Any) -> None:
        begin_in(self, key, host[:-1], device[:-1])

    monkeypatch.setattr(KvSwapper, "begin_in", all_but_one)


def swapped_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that come out of the lanes in one step go to each other's requests."""
    end_step = Piggyback.end_step

    def rolled(self: Piggyback, run: LaneRun) -> list[tuple[str, int]]:
        rows = end_step(self, run)
        return rows[1:] + rows[:1]

    monkeypatch.setattr(Piggyback, "end_step", rolled)


# Each has a model of its own: what it spoils in a prefix cache stays there.
MUTATIONS: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, str]] = {
    swapped_residuals: ("qwen3", "forced"),
    stale_residual: ("qwen3", "forced_one_row"),
    lost_kv_slot: ("qwen3", "mixed"),
    stale_lane: ("qwen3", "short_of_all"),
    wrong_layer: ("llama", "mixed"),
    earlier_result: ("llama", "forced_one_row"),
    lost_block: ("qwen3", "no_prefixes"),
    lost_on_return: ("qwen3", "short_of_device"),
    swapped_exits: ("llama", "forced"),
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    checkpoints = write_checkpoints(tmp_path_factory.mktemp("broken"), ["llama", "qwen3"])
    with running_fleet(checkpoints, [name for name in REGIMES if name != "off"]) as fleet:
        yield Trials(fleet, prompts_seed=1)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_engine_is_found(
    trials: Trials,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutation(monkeypatch)
    schedules = (trials.make([MUTATIONS[mutation]], seed) for seed in range(20))
    assert any(trials.judge(schedule).wrong for schedule in schedules)
