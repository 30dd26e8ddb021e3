"""Steps on captured graphs that stand back between layers: their tokens, and who waits for whom.

As in test_step_graphs.py a graph is a tape of operators, which knows nothing but its memory.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from engine_builders import GREEDY, Collected, make_model_settings, make_request
from oracle import Oracle
from step_graph_builders import TapedCapture, make_capturing_engine, use_accelerator_exchange

from omniserve.engine.core import Engine
from omniserve.engine.joint_layers import Rider
from omniserve.engine.running_step import RunningStep
from omniserve.engine.step_graphs import GraphSettings, StepGraphs
from omniserve.engine.step_inputs import StepInputs
from omniserve.requests import EngineRequest
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings, PiggybackSettings
from omniserve.synthetic.create import write_checkpoint

NUM_LAYERS = 4
PIGGYBACK = PiggybackSettings(
    host_kv_bytes=8 << 20,
    max_offloaded_requests=8,
    max_lane_rows=6,
    max_lane_rows_beside_ls=3,
    max_resident_decodes=0,
    when="always",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = {"num_hidden_layers": NUM_LAYERS, "head_dim": 32}
    path = tmp_path_factory.mktemp("segments") / "llama"
    return write_checkpoint(path, arch="llama", preset="tiny", seed=5, overrides=overrides)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


class Arrivals:
    """An engine on which requests arrive amid steps."""

    def __init__(
        self, *models: ModelSettings, pipeline_depth: int = 1, is_on_accelerator: bool = False
    ) -> None:
        self.capture = TapedCapture()
        self.when: Callable[[RunningStep, int], EngineRequest | None] = lambda step, to_layer: None
        """Asked amid each piece of work for what arrives then."""
        self.ran: list[tuple[str, bool, int, int]] = []
        """Model, whether of latency-sensitive rows, and from which to which layer."""
        self.requests: list[EngineRequest] = []
        self.results: dict[str, Collected] = {}
        self._inbox: list[EngineRequest] = []
        if is_on_accelerator:
            settings = EngineSettings(DeviceSettings("auto"), models)
            self.engine = Engine(settings, poll_arrivals=self._poll)
        else:
            self.engine = make_capturing_engine(
                self.capture, *models, pipeline_depth=pipeline_depth, poll_arrivals=self._poll
            )
        for model in models:
            self._watch(model.name)

    def _watch(self, model: str) -> None:
        runtime = self.engine.runtime(model)
        advance = runtime.advance

        def watched(step: RunningStep, to_layer: int) -> None:
            is_urgent = step.plan.has_latency_sensitive
            self.ran.append((model, is_urgent, step.cursor.next_layer, to_layer))
            late = self.when(step, to_layer)
            if late is not None:
                self._inbox.append(late)
            advance(step, to_layer)

        runtime.advance = watched  # type: ignore[method-assign]

    def _poll(self) -> None:
        while self._inbox:
            self.add(self._inbox.pop())

    def add(self, request: EngineRequest) -> None:
        self.requests.append(request)
        self.results[request.request_id] = Collected()
        self.engine.add(request)

    def run(self) -> None:
        end_s = time.monotonic() + 120.0
        while time.monotonic() < end_s:
            self._poll()
            if not self.engine.has_unfinished:
                return
            for output in self.engine.step():
                self.results[output.request_id].token_ids += output.token_ids
            self.engine.check_integrity()
        raise AssertionError("the engine makes no progress")

    def num_wrong(self, oracle: Oracle) -> int:
        compared = [
            oracle.compare(each.prompt_token_ids, self.results[each.request_id].token_ids)
            for each in self.requests
        ]
        assert all(
            len(self.results[each.request_id].token_ids) == each.sampling.max_tokens
            for each in self.requests
        )
        return sum(each.num_wrong for each in compared)


@contextmanager
def arriving(*models: ModelSettings, pipeline_depth: int = 1) -> Iterator[Arrivals]:
    arrivals = Arrivals(*models, pipeline_depth=pipeline_depth)
    try:
        yield arrivals
    finally:
        arrivals.engine.close()


def settings_of(path: Path, name: str = "tiny") -> ModelSettings:
    settings = make_model_settings(path, name=name, device_kv_bytes=1 << 20, max_running_requests=6)
    return replace(settings, max_model_len=112)


def ask(
    name: str, prompt: list[int], num_tokens: int, *, is_ls: bool, model: str = "tiny"
) -> EngineRequest:
    kind = "latency_sensitive" if is_ls else "best_effort"
    return make_request(name, prompt, replace(GREEDY, max_tokens=num_tokens), kind, model)  # type: ignore[arg-type]


class Urgent:
    """A latency-sensitive request of one token amid best-effort decodes, at another layer each
    time; as its prompt is a single token, its step has the shape of theirs."""

    def __init__(self, most: int, model: str = "tiny") -> None:
        self.num_come = 0
        self._most = most
        self._model = model

    def __call__(self, step: RunningStep, to_layer: int) -> EngineRequest | None:
        if step.plan.has_latency_sensitive or step.cursor.batch.attention.chunks:
            return None
        if self.num_come == self._most or to_layer != 1 + self.num_come % NUM_LAYERS:
            return None
        self.num_come += 1
        prompt = [40 + self.num_come]
        return ask(f"ls{self.num_come}", prompt, 1, is_ls=True, model=self._model)


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_a_step_that_was_passed_amid_its_graphs_goes_on_where_it_was(
    checkpoint: Path, oracle: Oracle, pipeline_depth: int
) -> None:
    """Passed by a step of the same shape, which uses the same memory."""
    with arriving(settings_of(checkpoint), pipeline_depth=pipeline_depth) as arrivals:
        arrivals.when = Urgent(8)
        arrivals.add(ask("be", [5, 6, 7], 16, is_ls=False))
        arrivals.run()
        graphs = arrivals.engine.runtime("tiny")._executor._graphs
        assert graphs is not None
        rows = {shape.num_rows for shape in graphs._segmented.by_shape}
        assert rows == {1}, "all steps had one shape"
    assert arrivals.num_wrong(oracle) == 0
    assert len(arrivals.requests) == 9
    passed = [first for _, is_urgent, first, _ in arrivals.ran if is_urgent and first == 0]
    assert len(passed) == 8


@pytest.mark.parametrize("segment_layers", [2, 3])
def test_segments_of_several_layers(
    checkpoint: Path, oracle: Oracle, segment_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = partial(GraphSettings, segment_layers=segment_layers)
    monkeypatch.setattr("omniserve.engine.build.GraphSettings", settings)
    with arriving(settings_of(checkpoint)) as arrivals:
        arrivals.when = lambda step, to_layer: (
            ask(f"ls{len(arrivals.requests)}", [41], 1, is_ls=True)
            if len(arrivals.requests) < 4 and to_layer == segment_layers
            else None
        )
        arrivals.add(ask("be", [5], 8, is_ls=False))
        arrivals.run()
    assert arrivals.num_wrong(oracle) == 0
    stops = {to_layer for _, is_urgent, _, to_layer in arrivals.ran if not is_urgent}
    assert stops == {segment_layers, NUM_LAYERS}


def lose_what_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: StepGraphs) -> None:
        self._occupant = None

    monkeypatch.setattr(StepGraphs, "_put_aside", forget)


def keep_the_others_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = StepInputs.fill
    last: list[object] = []

    def filling(self: StepInputs, batch: object, *args: object) -> None:
        if not any(batch is each for each in last):
            fill(self, batch, *args)  # type: ignore[arg-type]
        last.append(batch)

    monkeypatch.setattr(StepInputs, "fill", filling)


@pytest.mark.parametrize("mutate", [lose_what_is_put_aside, keep_the_others_inputs])
def test_memory_of_a_passed_step_that_is_not_restored_shows(
    checkpoint: Path,
    oracle: Oracle,
    mutate: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    with arriving(settings_of(checkpoint)) as arrivals:
        arrivals.when = Urgent(8)
        arrivals.add(ask("be", [5, 6, 7], 16, is_ls=False))
        arrivals.run()
    assert arrivals.num_wrong(oracle) > 0


def test_models_that_share_a_device_pass_each_other_at_layers(
    checkpoint: Path, oracle: Oracle
) -> None:
    """Latency-sensitive decodes go by single layers as well, and nobody waits for more of them."""
    models = [settings_of(checkpoint, name) for name in ("one", "two")]
    with arriving(*models) as arrivals:
        # Weights that both have would be run for both at once, without graphs.
        arrivals.engine._stepping.riding.is_on = False
        arrivals.when = Urgent(6, "two")
        arrivals.add(ask("be", [5, 6, 7], 12, is_ls=False, model="one"))
        arrivals.add(ask("ls", [8, 9], 12, is_ls=True, model="two"))
        arrivals.run()
        (waits,) = (each.layer_waits for each in arrivals.engine.stats() if each.name == "two")
    assert arrivals.num_wrong(oracle) == 0
    assert waits is not None and waits.layer_sum >= 1
    decodes = [(first, last) for _, is_urgent, first, last in arrivals.ran if is_urgent]
    assert {last - first for first, last in decodes} == {1}
    assert arrivals.capture.num_replays > 12 * NUM_LAYERS


def test_a_step_comes_to_its_end_at_once_where_nobody_is_left_to_pass(
    checkpoint: Path, oracle: Oracle
) -> None:
    prompt, num_tokens = [5, 6, 7], 6
    with arriving(settings_of(checkpoint)) as arrivals:
        engine, runtime = arrivals.engine, arrivals.engine.runtime("tiny")
        arrivals.add(ask("be", prompt, num_tokens, is_ls=False))
        tokens: list[int] = []
        with torch.inference_mode():
            while engine.has_unfinished:
                step = runtime.begin()
                assert step is not None
                runtime.advance(step, 1)
                runtime.advance(step, NUM_LAYERS)
                for output in runtime.finish(step):
                    tokens += output.token_ids
    assert len(tokens) == num_tokens
    assert oracle.compare(prompt, tokens).num_wrong == 0
    assert arrivals.capture.num_replays == (num_tokens - 1) * NUM_LAYERS


def test_lane_rows_leave_and_join_segment_by_segment(
    checkpoint: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_accelerator_exchange(monkeypatch)
    with arriving(replace(settings_of(checkpoint), piggyback=PIGGYBACK)) as arrivals:
        arrivals.when = Urgent(6)
        for number in range(10):
            arrivals.add(ask(f"be{number}", [5 + number] * (3 + 4 * number), 12, is_ls=False))
        arrivals.run()
        stats = arrivals.engine.stats()[0].piggyback
    assert arrivals.num_wrong(oracle) == 0
    assert stats is not None and stats.num_rows_joined > 50
    assert (stats.num_on_host, stats.num_ready_rows, stats.residual_bytes) == (0, 0, 0)
    assert arrivals.capture.num_replays > 50


def test_models_that_share_a_device_are_warmed_up_in_segments_alone(checkpoint: Path) -> None:
    """One that is alone is in both forms: another one may come."""
    with arriving(*(settings_of(checkpoint, name) for name in ("one", "two"))) as arrivals:
        arrivals.engine.warm_up()
        num_captures = arrivals.capture.num_captures
        for name in ("one", "two"):
            graphs = arrivals.engine.runtime(name)._executor._graphs
            assert graphs is not None and not graphs._whole.by_shape
            assert {shape.num_rows for shape in graphs._segmented.by_shape} == {1, 2, 4, 6}
        arrivals.add(ask("ls", [5], 4, is_ls=True, model="one"))
        arrivals.run()
        assert arrivals.capture.num_captures == num_captures
    with arriving(settings_of(checkpoint)) as arrivals:
        arrivals.engine.warm_up()
        graphs = arrivals.engine.runtime("tiny")._executor._graphs
        assert graphs is not None
        assert graphs._whole.by_shape.keys() == graphs._segmented.by_shape.keys()


def test_nobody_rides_with_a_step_amid_its_graphs(checkpoint: Path) -> None:
    with arriving(settings_of(checkpoint)) as arrivals:
        runtime = arrivals.engine.runtime("tiny")
        arrivals.add(ask("be", [5], 3, is_ls=False))
        with torch.inference_mode():
            step = runtime.begin()
            assert step is not None
            rider = runtime.rider(step)
            assert rider.shares_next_layer(Rider(rider.executor, step.cursor))
            runtime.advance(step, 1)
            assert not rider.shares_next_layer(Rider(rider.executor, step.cursor))
            runtime.advance(step, NUM_LAYERS)
            runtime.finish(step)


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
def test_steps_pass_each_other_amid_graphs_of_a_device(checkpoint: Path, oracle: Oracle) -> None:
    models = [settings_of(checkpoint, name) for name in ("one", "two")]
    arrivals = Arrivals(*models, is_on_accelerator=True)
    arrivals.engine._stepping.riding.is_on = False
    arrivals.engine.warm_up()
    arrivals.when = Urgent(6, "two")
    arrivals.add(ask("be", [5, 6, 7], 12, is_ls=False, model="one"))
    arrivals.add(ask("ls", [8, 9], 12, is_ls=True, model="two"))
    arrivals.run()
    graphs = arrivals.engine.runtime("one")._executor._graphs
    arrivals.engine.close()
    assert graphs is not None and graphs._segmented.by_shape
    assert arrivals.num_wrong(oracle) == 0
