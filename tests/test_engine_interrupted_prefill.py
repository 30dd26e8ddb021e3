"""A long best-effort prefill gives way within one layer, and loses nothing by it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, Collected, make_engine, make_model_settings, make_request

from omniserve.engine.core import Engine
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from omniserve.requests import EngineRequest, RequestOutput

LONG = list(range(100, 300))
"""Four steps long."""
SHORT = list(range(30, 50))
MAX_STEP_TOKENS = 64
SAMPLING = replace(GREEDY, max_tokens=8, logprobs=0)
BATCH = make_request("be", LONG, SAMPLING, "best_effort")


@dataclass(frozen=True)
class Layers:
    """A layer, or all that are left of a step, was run."""

    model: str
    is_urgent: bool
    first: int
    last: int


@dataclass
class Watched:
    """An engine of two models that notes each layer as it runs, and hears of arrivals between
    layers only, as the daemon's does."""

    path: Path
    pipeline_depth: int = 1
    inbox: list[EngineRequest] = field(default_factory=list)
    arrivals: dict[int, EngineRequest] = field(default_factory=dict)
    """What arrives while a best-effort layer runs, by how many of them ran before."""
    ran: list[Layers] = field(default_factory=list)
    results: dict[str, Collected] = field(default_factory=dict)
    arrived_at: int = -1
    """Length of `ran` when the last one arrived."""

    def __post_init__(self) -> None:
        models = [
            make_model_settings(self.path, name=name, max_step_tokens=MAX_STEP_TOKENS)
            for name in ("tiny", "other")
        ]
        self.engine: Engine = make_engine(
            *models, poll_arrivals=self._poll, pipeline_depth=self.pipeline_depth
        )
        for name in ("tiny", "other"):
            self._watch(name, self.engine.runtime(name))

    def _watch(self, name: str, runtime: ModelRuntime) -> None:
        advance = runtime.advance

        def watched(step: RunningStep, to_layer: int) -> None:
            is_urgent = step.plan.has_latency_sensitive
            late = None if is_urgent else self.arrivals.pop(self.num_best_effort_layers, None)
            if late is not None:
                # Amid the layer: the engine can know of it only when that is done.
                self.inbox.append(late)
                self.arrived_at = len(self.ran)
            self.ran.append(Layers(name, is_urgent, step.cursor.next_layer, to_layer))
            advance(step, to_layer)

        runtime.advance = watched  # type: ignore[method-assign]

    @property
    def num_best_effort_layers(self) -> int:
        return sum(layers.last - layers.first for layers in self.ran if not layers.is_urgent)

    def _poll(self) -> None:
        while self.inbox:
            self.add(self.inbox.pop())

    def add(self, request: EngineRequest) -> None:
        self.results[request.request_id] = Collected()
        self.engine.add(request)

    def step(self) -> list[RequestOutput]:
        outputs = self.engine.step()
        for output in outputs:
            collected = self.results[output.request_id]
            assert collected.finish_reason is None
            collected.token_ids += output.token_ids
            collected.logprobs += output.logprobs
            collected.finish_reason = output.finish_reason
        self.engine.check_integrity()
        return outputs

    def run(self) -> dict[str, Collected]:
        for _ in range(2000):
            if not self.engine.has_unfinished:
                assert all(stats.kv_used_bytes == 0 for stats in self.engine.stats())
                return self.results
            self.step()
        raise AssertionError("the engine makes no progress")

    def run_until(self, request_id: str) -> None:
        """Up to the first token of this request."""
        for _ in range(200):
            if any(each.request_id == request_id and each.token_ids for each in self.step()):
                return
        raise AssertionError(f"{request_id} gets no token")


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint: Path) -> Collected:
    watched = Watched(tiny_checkpoint)
    watched.add(BATCH)
    return watched.run()["be"]


def chat(number: int, model: str = "tiny") -> EngineRequest:
    prompt = [token + number for token in SHORT]
    return make_request(f"ls{number}", prompt, SAMPLING, model=model)


def assert_same(found: Collected, expected: Collected) -> None:
    assert found.finish_reason == expected.finish_reason == "length"
    assert found.token_ids == expected.token_ids
    logprobs = [entry.logprob for entry in found.logprobs]
    assert logprobs == pytest.approx([entry.logprob for entry in expected.logprobs], abs=1e-4)


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("model", ["tiny", "other"])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 7])
def test_an_urgent_request_starts_within_one_layer(
    tiny_checkpoint: Path, undisturbed: Collected, place: int, model: str, pipeline_depth: int
) -> None:
    watched = Watched(tiny_checkpoint, pipeline_depth, arrivals={place: chat(0, model)})
    watched.add(BATCH)
    watched.run_until("ls0")
    after = watched.ran[watched.arrived_at :]
    is_urgent = [layers.is_urgent for layers in after]
    # The layer amid which it came is run to its end; then all of its own prompt is, at once.
    assert is_urgent[:2] == [False, True]
    assert after[0].last - after[0].first == 1
    assert (after[1].model, after[1].first) == (model, 0)
    # Its first token is there before the best-effort step goes on.
    assert all(is_urgent[1:])
    assert_same(watched.run()["be"], undisturbed)


def test_what_is_interrupted_often_is_unchanged_and_nothing_is_done_twice(
    tiny_checkpoint: Path, undisturbed: Collected
) -> None:
    alone = Watched(tiny_checkpoint)
    alone.add(BATCH)
    alone.run()
    # One token each, so that none of them takes best-effort rows along in a step of its own.
    arrivals = {
        place: replace(
            chat(place, model=("tiny", "other")[place % 2]),
            sampling=replace(SAMPLING, max_tokens=1),
        )
        for place in range(alone.num_best_effort_layers)
    }
    watched = Watched(tiny_checkpoint, arrivals=dict(arrivals))
    watched.add(BATCH)
    results = watched.run()
    assert not watched.arrivals
    assert_same(results["be"], undisturbed)
    assert all(len(results[each.request_id].token_ids) == 1 for each in arrivals.values())
    assert watched.num_best_effort_layers == alone.num_best_effort_layers
    assert all(layers.last - layers.first == 1 for layers in watched.ran if not layers.is_urgent)


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_decodes_beside_it_change_nothing(
    tiny_checkpoint: Path, undisturbed: Collected, pipeline_depth: int
) -> None:
    """Chats that go on beside the rest of the prompt, in the same steps."""
    arrivals = {place: chat(place) for place in (0, 2, 3, 5)}
    watched = Watched(tiny_checkpoint, pipeline_depth, arrivals=arrivals)
    watched.add(BATCH)
    results = watched.run()
    assert_same(results["be"], undisturbed)
    for number in (0, 2, 3, 5):
        alone = Watched(tiny_checkpoint)
        alone.add(chat(number))
        assert_same(results[f"ls{number}"], alone.run()[f"ls{number}"])


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("has_company", [False, True])
def test_one_that_is_cancelled_while_parked_leaves_the_others_as_they_are(
    tiny_checkpoint: Path, undisturbed: Collected, has_company: bool, pipeline_depth: int
) -> None:
    watched = Watched(tiny_checkpoint, pipeline_depth, arrivals={1: chat(0)})
    short = make_request("doomed", SHORT, SAMPLING, "best_effort")
    watched.add(short)
    if has_company:
        watched.add(BATCH)
    watched.run_until("ls0")
    assert watched.engine.is_parked
    watched.engine.abort("doomed")
    del watched.results["doomed"]
    results = watched.run()
    assert len(results["ls0"].token_ids) == SAMPLING.max_tokens
    if has_company:
        assert_same(results["be"], undisturbed)


def test_an_urgent_request_that_is_cancelled_does_not_hold_up_the_parked_step(
    tiny_checkpoint: Path, undisturbed: Collected
) -> None:
    watched = Watched(tiny_checkpoint, arrivals={1: chat(0)})
    watched.add(BATCH)
    while not watched.engine.is_parked:
        watched.step()
    watched.engine.abort("ls0")
    del watched.results["ls0"]
    assert_same(watched.run()["be"], undisturbed)
