"""Several models on one device: whose layers run while others wait; no token changes by it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

import pytest
from engine_builders import GREEDY, Collected, make_engine, make_model_settings, make_request
from oracle import Oracle

from omniserve.engine.core import Engine
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.synthetic.create import write_checkpoint
from scheduler.step_time import LinearStepTime, StepCosts

NAMES = ("one", "two", "three")
LONG = list(range(100, 300))
"""Four steps long."""
SHORT = list(range(30, 50))


@dataclass(frozen=True)
class Layers:
    """Layers of one step that ran without a look around."""

    model: str
    has_ls: bool
    has_be: bool
    first: int
    last: int


@dataclass
class Watched:
    """An engine that notes which layers run; requests arrive amid layers."""

    paths: dict[str, Path]
    pipeline_depth: int = 1
    step_time: LinearStepTime | None = None
    when: Callable[[Layers], EngineRequest | None] = lambda layers: None
    """Asked amid each piece of work for what arrives then."""
    ran: list[Layers] = field(default_factory=list)
    results: dict[str, Collected] = field(default_factory=dict)
    requests: list[EngineRequest] = field(default_factory=list)
    arrived_at: int = -1
    """Length of `ran` when the last one arrived, with the work amid which it did."""

    def __post_init__(self) -> None:
        self._inbox: list[EngineRequest] = []
        models = [
            replace(make_model_settings(path, name=name), step_time=self.step_time)
            for name, path in self.paths.items()
        ]
        self.engine: Engine = make_engine(
            *models, poll_arrivals=self._poll, pipeline_depth=self.pipeline_depth
        )
        for name in self.paths:
            self._watch(name, self.engine.runtime(name))

    def _watch(self, name: str, runtime: ModelRuntime) -> None:
        advance = runtime.advance

        def watched(step: RunningStep, to_layer: int) -> None:
            plan = step.plan
            layers = Layers(
                name,
                plan.has_latency_sensitive,
                plan.has_best_effort,
                step.cursor.next_layer,
                to_layer,
            )
            self.ran.append(layers)
            late = self.when(layers)
            if late is not None:
                self._inbox.append(late)
                self.arrived_at = len(self.ran)
            advance(step, to_layer)

        runtime.advance = watched  # type: ignore[method-assign]

    def _poll(self) -> None:
        while self._inbox:
            self.add(self._inbox.pop())

    def add(self, request: EngineRequest) -> None:
        self.requests.append(request)
        self.results[request.request_id] = Collected()
        self.engine.add(request)

    def step(self) -> list[RequestOutput]:
        outputs = self.engine.step()
        for output in outputs:
            self.results[output.request_id].token_ids += output.token_ids
        self.engine.check_integrity()
        return outputs

    def run(self) -> dict[str, Collected]:
        for _ in range(5000):
            self._poll()
            if not self.engine.has_unfinished:
                assert all(stats.kv_used_bytes == 0 for stats in self.engine.stats())
                return self.results
            self.step()
        raise AssertionError("the engine makes no progress")


class Once:
    """A request that comes with the first layers that are as it wants them."""

    def __init__(self, request: EngineRequest, is_it: Callable[[Layers], bool]) -> None:
        self._request: EngineRequest | None = request
        self._is_it = is_it

    def __call__(self, layers: Layers) -> EngineRequest | None:
        if self._request is None or not self._is_it(layers):
            return None
        request, self._request = self._request, None
        return request


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three architectures, of which the second has other weights and windows than the first."""
    directory = tmp_path_factory.mktemp("interleaved")
    architectures = zip(NAMES, ("qwen3", "mistral", "llama"), strict=True)
    return {
        name: write_checkpoint(directory / name, arch=arch, preset="tiny", seed=seed)
        for seed, (name, arch) in enumerate(architectures, start=5)
    }


def ask(
    name: str, model: str, prompt: list[int], max_tokens: int, *, is_ls: bool = True
) -> EngineRequest:
    sampling = replace(GREEDY, max_tokens=max_tokens)
    return make_request(
        name, prompt, sampling, "latency_sensitive" if is_ls else "best_effort", model
    )


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_first_token_waits_for_one_layer_of_another_models_mixed_step(
    tiny_checkpoint: Path, layer: int, pipeline_depth: int
) -> None:
    """Latency-sensitive decodes of the one model carry a best-effort prompt along."""
    newcomer = ask("new", "two", SHORT, 2)
    paths = {"one": tiny_checkpoint, "two": tiny_checkpoint}
    watched = Watched(paths, pipeline_depth)
    watched.when = Once(newcomer, lambda ran: ran.has_ls and ran.has_be and ran.first == layer)
    watched.add(ask("chat", "one", SHORT, 12))
    watched.add(ask("batch", "one", LONG, 4, is_ls=False))
    while watched.arrived_at < 0:
        watched.step()
    assert (watched.ran[-1].last, watched.engine.is_parked) == (layer + 1, True)
    while not watched.results["new"].token_ids:
        watched.step()
    after = watched.ran[watched.arrived_at :]
    assert after[0] == Layers("two", True, False, 0, 1)
    assert {layers.model for layers in after} == {"two"}
    assert watched.engine.is_parked, "the step that it passed was run first"
    watched.run()
    assert_exact(watched)


def test_a_step_of_latency_sensitive_rows_alone_goes_on(tiny_checkpoint: Path) -> None:
    """Where nothing is known of times neither of two models is more urgent."""
    watched = Watched({"one": tiny_checkpoint, "two": tiny_checkpoint})
    watched.when = Once(ask("new", "two", SHORT, 2), lambda ran: ran.first == 0)
    watched.add(ask("chat", "one", SHORT, 4))
    watched.step()
    assert watched.results["chat"].token_ids
    assert {layers.model for layers in watched.ran} == {"one"}
    watched.run()


def test_latency_sensitive_steps_of_a_model_that_is_alone_run_through(
    tiny_checkpoint: Path,
) -> None:
    watched = Watched({"one": tiny_checkpoint})
    watched.add(ask("chat", "one", SHORT, 4))
    watched.add(ask("batch", "one", LONG, 4, is_ls=False))
    watched.run()
    num_layers = watched.engine.runtime("one").num_layers
    urgent = [layers for layers in watched.ran if layers.has_ls]
    assert urgent
    assert all((layers.first, layers.last) == (0, num_layers) for layers in urgent)
    assert watched.engine.stats()[0].layer_waits is None


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("is_timed", [False, True])
def test_three_models_interleaved_equal_transformers(
    three: dict[str, Path], is_timed: bool, pipeline_depth: int
) -> None:
    """Requests of all models come amid layers of all others, with and without step times."""
    costs = StepCosts(overhead_s=1e-4, dense_ladder=((1, 2e-3),), prefill_token_s=1e-5)
    arrivals = [
        ask(
            f"r{index}",
            NAMES[index % 3],
            [7 * index + token for token in (LONG if index % 4 == 1 else SHORT)],
            4 + index % 5,
            is_ls=index % 2 == 0,
        )
        for index in range(18)
    ]
    watched = Watched(three, pipeline_depth, LinearStepTime(costs) if is_timed else None)
    waiting = arrivals[6:]
    watched.when = lambda ran: waiting.pop(0) if waiting and len(watched.ran) % 3 == 0 else None
    for request in arrivals[:6]:
        watched.add(request)
    watched.run()
    assert len(watched.requests) == len(arrivals)
    waits = [stats.layer_waits for stats in watched.engine.stats()]
    assert sum(each.num_parked for each in waits if each is not None) > 0
    assert_exact(watched)


def assert_exact(watched: Watched) -> None:
    oracles = {name: Oracle(path) for name, path in watched.paths.items()}
    for request in watched.requests:
        tokens = watched.results[request.request_id].token_ids
        assert len(tokens) == request.sampling.max_tokens
        comparison = oracles[request.model].compare(request.prompt_token_ids, tokens)
        assert comparison.num_wrong == 0, request.request_id


def test_waits_behind_other_models_are_counted(tiny_checkpoint: Path) -> None:
    watched = Watched({"one": tiny_checkpoint, "two": tiny_checkpoint})
    watched.when = Once(ask("new", "two", SHORT, 1), lambda ran: not ran.has_ls and ran.first == 0)
    watched.add(ask("batch", "one", LONG, 2, is_ls=False))
    watched.run()
    one, two = (stats.layer_waits for stats in watched.engine.stats())
    assert one is not None and two is not None
    assert one.num_parked == 1
    # It came amid one layer, and began behind that.
    assert (two.layer_counts[1], sum(two.layer_counts), two.layer_sum) == (1, 1, 1)
    assert sum(two.second_counts) == 1
    assert 0.0 < two.second_sum < inf


def test_a_parked_step_of_a_model_that_is_gone_is_dropped(tiny_checkpoint: Path) -> None:
    watched = Watched({"one": tiny_checkpoint, "two": tiny_checkpoint})
    watched.when = Once(ask("new", "two", SHORT, 2), lambda ran: not ran.has_ls)
    watched.add(ask("batch", "one", LONG, 2, is_ls=False))
    watched.step()
    engine = watched.engine
    assert engine.is_parked
    del engine._runtimes["one"]
    engine._stepping.forget("one")
    assert not engine.is_parked
    watched.run()
    assert len(watched.results["new"].token_ids) == 2
