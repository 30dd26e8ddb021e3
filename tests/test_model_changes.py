"""Models that come to an engine and leave it while others run, in this process."""

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import GREEDY, make_engine, make_model_settings, make_request
from oracle import Oracle
from safetensors.torch import load_file, save_file

from omniserve.engine import model_memory
from omniserve.engine.build import BuiltModel
from omniserve.engine.core import Engine
from omniserve.engine.model_news import LoadAdvanced, Loaded, News, Refused, Unloaded
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.errors import ConfigError, InvalidRequest, UnknownModel
from omniserve.models.weight_files import WeightFiles
from omniserve.requests import EngineRequest, ServiceClassName
from omniserve.settings import ModelSettings
from omniserve.synthetic.create import write_checkpoint

ARCHITECTURES = ("llama", "qwen3", "qwen3_moe")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("models")
    return {
        arch: write_checkpoint(directory / arch, arch=arch, preset="tiny", seed=index)
        for index, arch in enumerate(ARCHITECTURES)
    }


@pytest.fixture(scope="module")
def oracles(checkpoints: dict[str, Path]) -> dict[str, Oracle]:
    return {name: Oracle(path) for name, path in checkpoints.items()}


def settings_of(checkpoints: dict[str, Path], name: str) -> ModelSettings:
    return make_model_settings(checkpoints[name], name=name, device_kv_bytes=600_000)


@dataclass
class Run:
    """An engine that is stepped, and what came of it."""

    engine: Engine
    requests: dict[str, EngineRequest] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    news: list[News] = field(default_factory=list)

    def add(self, model: str, service_class: ServiceClassName, num_tokens: int = 12) -> str:
        index = len(self.requests)
        prompt = [5 + (7 * index + 3 * place) % 490 for place in range(20 + 5 * (index % 7))]
        sampling = replace(GREEDY, max_tokens=num_tokens)
        request = make_request(f"r{index}", prompt, sampling, service_class, model)
        self.requests[request.request_id] = request
        self.tokens[request.request_id] = []
        self.engine.add(request)
        return request.request_id

    def step(self) -> None:
        for output in self.engine.step():
            assert output.request_id not in self.ended
            self.tokens[output.request_id] += output.token_ids
            if output.error is not None:
                assert output.is_unavailable
                self.errors[output.request_id] = output.error
            if output.finish_reason is not None:
                self.ended.add(output.request_id)
        self.news += self.engine.take_news()

    def until(self, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            self.step()
            # Threads that load must get on where nothing is to be computed.
            time.sleep(1e-4)
            assert time.monotonic() < end_s

    def settle(self) -> None:
        self.until(lambda: not self.engine.is_changing and not self.engine.has_unfinished)
        self.engine.check_integrity()

    def load(self, settings: ModelSettings) -> News:
        self.engine.begin_load(1, settings)
        self.until(lambda: not self.engine.is_changing)
        return self.news[-1]

    def unload(self, name: str) -> None:
        self.engine.begin_unload(2, name)
        self.until(lambda: not self.engine.is_changing)

    def check(self, oracles: dict[str, Oracle]) -> None:
        """Every token is the oracle's; requests that were not cut off have all of theirs."""
        for request_id, request in self.requests.items():
            tokens = self.tokens[request_id]
            if request_id not in self.errors:
                assert len(tokens) == request.sampling.max_tokens
            compared = oracles[request.model].compare(request.prompt_token_ids, tokens)
            assert compared.num_wrong == 0, request_id


def news_of(run: Run, kind: type[News]) -> list[Any]:
    return [news for news in run.news if isinstance(news, kind)]


@pytest.mark.parametrize(
    ("error", "is_checkpoint"),
    [
        (MemoryError(), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), False),
        (OSError(errno.EIO, "Input/output error"), True),
        (RuntimeError("a fault"), True),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_no_fault_of_the_checkpoint(
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    is_checkpoint: bool,
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama"), poll_arrivals=lambda: None))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("omniserve.engine.model_load.build_model", fail)
    refused = run.load(settings_of(checkpoints, "qwen3"))
    assert isinstance(refused, Refused) and refused.is_checkpoint is is_checkpoint
    assert ("there is no memory left for it" in refused.message) is not is_checkpoint


def test_a_load_that_fails_as_it_joins_is_refused_and_can_be_tried_again(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama"), poll_arrivals=lambda: None))

    def fail(*_: object) -> None:
        raise MemoryError("no room for its tables")

    with monkeypatch.context() as patched:
        patched.setattr("omniserve.engine.core.make_runtime", fail)
        refused = run.load(settings_of(checkpoints, "qwen3"))
    assert isinstance(refused, Refused)
    assert "MemoryError: no room for its tables" in refused.message
    assert isinstance(run.load(settings_of(checkpoints, "qwen3")), Loaded)
    for name in ("llama", "qwen3"):
        run.add(name, "best_effort")
    run.settle()
    run.check(oracles)


def test_a_load_that_fails_once_it_has_joined_is_taken_out_again(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama"), poll_arrivals=lambda: None))

    def fail(runtime: ModelRuntime) -> None:
        raise InvalidRequest("nothing can be tried", "prompt")

    with monkeypatch.context() as patched:
        patched.setattr("omniserve.engine.model_changes.Trial", fail)
        refused = run.load(settings_of(checkpoints, "qwen3"))
    assert isinstance(refused, Refused)
    assert "nothing can be tried" in refused.message
    assert [model.name for model in run.engine.models] == ["llama"]
    with pytest.raises(UnknownModel):
        run.engine.runtime("qwen3")
    assert isinstance(run.load(settings_of(checkpoints, "qwen3")), Loaded)
    for name in ("llama", "qwen3"):
        run.add(name, "best_effort")
    run.settle()
    run.check(oracles)


def test_a_refusal_is_told_once_the_memory_is_given_back(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    is_held, begun = threading.Event(), threading.Event()

    def take_apart(self: BuiltModel) -> Iterator[None]:
        begun.set()
        assert is_held.wait(PATIENCE_S)
        yield

    def fail(*_: object) -> None:
        raise ConfigError("it cannot join")

    monkeypatch.setattr(BuiltModel, "take_apart", take_apart)
    monkeypatch.setattr("omniserve.engine.core.make_runtime", fail)
    run.engine.begin_load(1, settings_of(checkpoints, "qwen3"))
    run.until(begun.is_set)
    # Whoever asks for it to be gone waits as well; so does a load that may need the memory.
    run.engine.begin_unload(2, "qwen3")
    run.engine.begin_load(3, replace(settings_of(checkpoints, "qwen3"), device_kv_bytes=1))
    for _ in range(20):
        run.step()
    assert not [each for each in run.news if isinstance(each, Refused | Unloaded)]
    is_held.set()
    run.settle()
    told = [each.question for each in run.news if isinstance(each, Refused | Unloaded)]
    assert told == [1, 2, 3]


def test_everybody_who_unloads_a_model_is_told_when_it_is_gone(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    is_held = threading.Event()
    take_apart = ModelRuntime.take_apart

    def held(self: ModelRuntime) -> Iterator[None]:
        assert is_held.wait(PATIENCE_S)
        yield from take_apart(self)

    monkeypatch.setattr(ModelRuntime, "take_apart", held)
    for question in (1, 2):
        run.engine.begin_unload(question, "llama")
    for _ in range(20):
        run.step()
    assert not run.news
    is_held.set()
    run.settle()
    assert run.news == [Unloaded(1), Unloaded(2)]


def test_three_models_come_and_go_and_every_token_is_right(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama"), poll_arrivals=lambda: None))
    for _ in range(2):
        for name in ("qwen3", "qwen3_moe"):
            run.engine.begin_load(1, settings_of(checkpoints, name))
        while run.engine.is_changing:
            if len(run.requests) - len(run.ended) < 3:
                run.add("llama", "latency_sensitive")
            run.step()
        for index in range(4):
            for name in ARCHITECTURES:
                is_urgent = name == "llama" or index % 2
                run.add(name, "latency_sensitive" if is_urgent else "best_effort")
        for _ in range(6):
            run.step()
        cut_off = run.add("qwen3", "best_effort", 200)
        for _ in range(9):
            run.step()
        run.engine.begin_unload(2, "qwen3")
        run.settle()
        assert cut_off in run.errors
        assert {run.requests[each].model for each in run.errors} == {"qwen3"}
        run.unload("qwen3_moe")
        assert [model.name for model in run.engine.models] == ["llama"]
        assert [stats.kv_used_bytes for stats in run.engine.stats()] == [0]
    assert len(news_of(run, Loaded)) == len(news_of(run, Unloaded)) == 4
    assert not news_of(run, Refused)
    run.check(oracles)


def test_steps_go_on_between_any_two_pieces_that_are_read(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load waits after each piece until a step has ended: it would wait forever for one that
    waits for the load."""
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    num_steps, num_pieces = 0, 0
    read = WeightFiles.read

    def read_and_wait(self: WeightFiles, *args: Any) -> None:
        nonlocal num_pieces
        read(self, *args)
        num_pieces += 1
        before, end_s = num_steps, time.monotonic() + PATIENCE_S
        while num_steps < before + 1:
            assert time.monotonic() < end_s, "no step ends while a model is loaded"
            time.sleep(1e-4)

    monkeypatch.setattr(WeightFiles, "read", read_and_wait)
    run.engine.begin_load(1, settings_of(checkpoints, "qwen3_moe"))
    while run.engine.is_changing:
        if len(run.requests) - len(run.ended) < 2:
            run.add("llama", "latency_sensitive")
        run.step()
        num_steps += 1
    assert num_pieces > 50
    assert news_of(run, Loaded)
    run.settle()
    run.check(oracles)


def test_progress_is_told_by_phase_and_bytes(checkpoints: dict[str, Path]) -> None:
    run = Run(make_engine())
    assert isinstance(run.load(settings_of(checkpoints, "qwen3_moe")), Loaded)
    told = news_of(run, LoadAdvanced)
    phases = [each.phase for each in told]
    assert phases == sorted(phases, key=["checking", "reading", "warming_up"].index)
    assert phases[-1] == "warming_up"
    size = sum(
        tensor.nbytes
        for tensor in load_file(checkpoints["qwen3_moe"] / "model.safetensors").values()
    )
    assert (told[-1].done_bytes, told[-1].total_bytes) == (size, size)


def test_a_parked_step_of_a_model_that_goes_is_dropped(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    arrivals: list[str] = []

    def poll() -> None:
        if arrivals:
            run.add(arrivals.pop(), "latency_sensitive")

    models = [settings_of(checkpoints, name) for name in ("llama", "qwen3")]
    run = Run(make_engine(*models, poll_arrivals=poll))
    gone = run.add("qwen3", "best_effort")
    arrivals.append("llama")
    run.until(lambda: run.engine.is_parked)
    run.unload("qwen3")
    assert not run.engine.is_parked
    assert run.errors == {gone: "model 'qwen3' was unloaded; it may be served again later"}
    run.settle()
    run.check(oracles)


def test_an_engine_without_models_waits_for_one(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    run.unload("llama")
    assert (run.engine.models, run.engine.stats(), run.engine.step()) == ((), (), [])
    assert isinstance(run.load(settings_of(checkpoints, "llama")), Loaded)
    run.add("llama", "best_effort")
    run.settle()
    run.check(oracles)


def no_shape(path: Path) -> None:
    edit(path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))


def no_weight(path: Path) -> None:
    edit(path, lambda tensors: tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight"))


def one_too_many(path: Path) -> None:
    edit(path, lambda tensors: tensors.update({"model.layers.0.ghost.weight": torch.ones(3)}))


def not_finite(path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][:] = float("nan")

    edit(path, spoil)


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("{}")


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_shape, r"mismatched keys .* model.norm.weight has shape \[3\], .* says \[64\]"),
        (no_weight, r"missing keys .*gate_up_proj \(15 of 16 parts are there\)"),
        (one_too_many, "unexpected keys .* model.layers.0.ghost.weight"),
        (not_finite, "logits are not finite"),
        (no_tokenizer, "not a tokenizer"),
    ],
)
def test_a_broken_checkpoint_is_refused_and_others_go_on(
    checkpoints: dict[str, Path],
    oracles: dict[str, Oracle],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    broken = write_checkpoint(tmp_path / "broken", arch="qwen3_moe", preset="tiny", seed=2)
    spoil(broken)
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    run.add("llama", "latency_sensitive", 60)
    news = run.load(make_model_settings(broken, name="broken"))
    assert isinstance(news, Refused)
    assert news.is_checkpoint
    assert re.search(message, news.message)
    assert [model.name for model in run.engine.models] == ["llama"]
    run.settle()
    run.check(oracles)


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "cut", arch="llama", preset="tiny", seed=2)
    read = WeightFiles.read

    def read_cut(self: WeightFiles, *args: Any) -> None:
        with (path / "model.safetensors").open("r+b") as file:
            file.truncate(100_000)
        read(self, *args)

    run = Run(make_engine(settings_of(checkpoints, "llama")))
    monkeypatch.setattr(WeightFiles, "read", read_cut)
    news = run.load(make_model_settings(path, name="cut"))
    assert isinstance(news, Refused) and news.is_checkpoint
    assert news.message.endswith("model.safetensors: truncated while it was read")


def test_what_does_not_fit_is_refused_before_anything_is_read(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    wrong: Any = "int3"
    small = replace(settings_of(checkpoints, "qwen3"), device_kv_bytes=1)
    unknown = replace(settings_of(checkpoints, "qwen3"), dtype=wrong)
    for settings, message in (
        (small, "hold no KV block"),
        (unknown, "models.qwen3.dtype: 'int3'; allowed: float32, bfloat16, float16"),
        (settings_of(checkpoints, "llama"), "there is a model of this name already"),
    ):
        news = run.load(settings)
        assert isinstance(news, Refused) and not news.is_checkpoint
        assert message in news.message
    # What models that are there have of its weights would not count.
    run.unload("llama")
    monkeypatch.setattr(model_memory, "free_bytes", lambda device: 900_000)
    news = run.load(settings_of(checkpoints, "qwen3"))
    assert isinstance(news, Refused) and not news.is_checkpoint
    assert "its weights take 0.00 GB in float32" in news.message
    assert not [each for each in news_of(run, LoadAdvanced) if each.phase == "reading"]


def test_a_weight_for_which_there_is_no_room_ends_the_load(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    with monkeypatch.context() as patched:
        patched.setattr(model_memory, "free_bytes", lambda device: 100_000)
        news = run.load(settings_of(checkpoints, "qwen3"))
    assert isinstance(news, Refused) and not news.is_checkpoint
    assert "its next weight, which no other model has, takes 0.00 GB" in news.message
    run.add("llama", "best_effort")
    run.settle()
    run.check(oracles)


@pytest.mark.parametrize("when", ["waiting", "reading", "warming_up"])
def test_an_unload_ends_a_load(
    checkpoints: dict[str, Path],
    oracles: dict[str, Oracle],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    run = Run(make_engine(settings_of(checkpoints, "llama")))
    is_told, read = threading.Event(), WeightFiles.read

    def read_once_that_is_told(self: WeightFiles, *args: Any) -> None:
        assert is_told.wait(PATIENCE_S)
        read(self, *args)

    if when == "reading":
        monkeypatch.setattr(WeightFiles, "read", read_once_that_is_told)
    run.add("llama", "latency_sensitive", 40)
    run.engine.begin_load(1, settings_of(checkpoints, "qwen3"))
    if when != "waiting":
        run.until(lambda: any(each.phase == when for each in news_of(run, LoadAdvanced)))
    is_told.set()
    run.engine.begin_unload(2, "qwen3")
    run.engine.begin_load(3, settings_of(checkpoints, "qwen3"))
    run.until(lambda: not run.engine.is_changing)
    (refused,), (loaded,) = news_of(run, Refused), news_of(run, Loaded)
    assert (refused.question, loaded.question) == (1, 3)
    assert [each.question for each in news_of(run, Unloaded)] == [2]
    run.add("qwen3", "latency_sensitive")
    run.settle()
    run.check(oracles)


def test_an_unload_of_nothing_is_answered(checkpoints: dict[str, Path]) -> None:
    run = Run(make_engine())
    run.unload("ghost")
    assert run.news == [Unloaded(2)]
