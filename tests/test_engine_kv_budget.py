"""Two models on one KV budget: their tokens are right while memory moves, and it really moves."""

import ctypes
import mmap
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, is_any_wrong, make_model_settings, make_request, run_all
from oracle import Oracle

from omniserve.devices.device import open_device
from omniserve.devices.elastic_memory import HostPages
from omniserve.engine.core import Engine
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.running_step import RunningStep
from omniserve.errors import ConfigError
from omniserve.requests import EngineRequest
from omniserve.settings import DeviceSettings, EngineSettings, KvShareStats, ModelSettings
from omniserve.synthetic.create import write_checkpoint

LONGEST = 240
KV_BYTES = 700_000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("budget")
    return {
        "a": write_checkpoint(directory / "a", arch="qwen3", preset="tiny", seed=1),
        "b": write_checkpoint(directory / "b", arch="llama", preset="tiny", seed=2),
    }


def make_shared(
    *models: ModelSettings,
    kv_bytes: int,
    pipeline_depth: int = 1,
    threads: int = 1,
    poll_arrivals: Callable[[], None] | None = None,
) -> Engine:
    settings = EngineSettings(DeviceSettings("cpu", threads, kv_bytes), models)
    device = replace(open_device(settings.device), pipeline_depth=pipeline_depth)
    return Engine(settings, poll_arrivals, device)


def model_of(path: Path, **fields: int) -> ModelSettings:
    settings = make_model_settings(path, name=path.name, device_kv_bytes=1 << 20)
    return replace(settings, max_model_len=LONGEST, **fields)  # type: ignore[arg-type]


def share_of(engine: Engine, model: str) -> KvShareStats:
    (stats,) = (each for each in engine.stats() if each.name == model)
    assert stats.kv_share is not None
    return stats.kv_share


def tides(count: int, seed: int) -> list[EngineRequest]:
    """Load that is now on the one model and now on the other, of both classes."""
    rng = random.Random(seed)
    requests = []
    for index in range(count):
        prompt = [rng.randrange(5, 500) for _ in range(rng.choice([1, 15, 16, 17, 40, 90, 150]))]
        sampling = replace(GREEDY, max_tokens=rng.choice([4, 12, 60]))
        service_class = "latency_sensitive" if rng.random() < 0.4 else "best_effort"
        model = "ab"[(index // 8) % 2] if rng.random() < 0.9 else rng.choice("ab")
        requests.append(make_request(f"r{index}", prompt, sampling, service_class, model))  # type: ignore[arg-type]
    return requests


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_tokens_equal_transformers_while_memory_moves(
    checkpoints: dict[str, Path], pipeline_depth: int
) -> None:
    engine = make_shared(
        *(model_of(path) for path in checkpoints.values()),
        kv_bytes=KV_BYTES,
        pipeline_depth=pipeline_depth,
    )
    requests = tides(40, seed=pipeline_depth)
    results = run_all(
        engine, requests, arrivals_per_step=1, after_step=lambda step: engine.check_integrity()
    )
    for name, path in checkpoints.items():
        share = share_of(engine, name)
        assert share.num_moves_in > 3 and share.num_moves_out > 3, "memory hardly moved"
        oracle = Oracle(path)
        for request in requests:
            if request.model == name:
                found = results[request.request_id].token_ids
                assert len(found) == request.sampling.max_tokens
                assert oracle.compare(request.prompt_token_ids, found).num_wrong == 0
    assert sum(stats.num_preemptions for stats in engine.stats()) > 0
    assert all(stats.kv_used_bytes == 0 for stats in engine.stats())


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_tokens_equal_transformers_where_steps_that_stand_are_dropped(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, pipeline_depth: int
) -> None:
    """Latency-sensitive requests come amid the layers of the other model's best-effort steps."""
    dropped: list[int] = []
    drop = ModelRuntime.drop

    def note_layer(self: ModelRuntime, step: RunningStep) -> None:
        dropped.append(step.cursor.next_layer)
        drop(self, step)

    monkeypatch.setattr(ModelRuntime, "drop", note_layer)
    patient = [
        make_request(f"be{n}", range(5 + n, 155 + n), GREEDY, "best_effort", "a") for n in range(24)
    ]
    urgent = [
        make_request(f"ls{n}", range(9 + n, 209 + n), GREEDY, "latency_sensitive", "b")
        for n in range(8)
    ]
    requests = [*patient, *urgent]

    def poll() -> None:
        """They come two at a time, when the other model holds nearly everything."""
        (held,) = (each.kv_used_bytes for each in engine.stats() if each.name == "a")
        if urgent and held > 0.7 * KV_BYTES and not engine.runtime("b").has_unfinished:
            engine.add(urgent.pop())
            engine.add(urgent.pop())

    engine = make_shared(
        *(model_of(path) for path in checkpoints.values()),
        kv_bytes=KV_BYTES,
        pipeline_depth=pipeline_depth,
        poll_arrivals=poll,
    )
    for request in patient:
        engine.add(request)
    tokens: dict[str, list[int]] = {each.request_id: [] for each in requests}
    while engine.has_unfinished:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
        engine.check_integrity()
    assert not urgent
    assert any(layer > 0 for layer in dropped)
    oracles = {name: Oracle(path) for name, path in checkpoints.items()}
    for request in requests:
        found = tokens[request.request_id]
        assert len(found) == request.sampling.max_tokens
        compared = oracles[request.model].compare(request.prompt_token_ids, found)
        assert compared.num_wrong == 0
    assert all(stats.kv_used_bytes == 0 for stats in engine.stats())


def test_memory_given_back_while_it_is_read_is_noticed(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutation: the pages next to those that were withdrawn go as well."""
    give_back = HostPages.give_back

    def give_back_too_much(self: HostPages, start: int, stop: int) -> None:
        give_back(self, max(0, start - 4 * (stop - start)), stop)

    monkeypatch.setattr(HostPages, "give_back", give_back_too_much)
    oracles = {name: Oracle(path) for name, path in checkpoints.items()}

    def is_noticed(seed: int) -> bool:
        engine = make_shared(*(model_of(path) for path in checkpoints.values()), kv_bytes=KV_BYTES)
        requests = tides(40, seed)
        return is_any_wrong(oracles, requests, run_all(engine, requests, arrivals_per_step=1))

    # Which memory is in use as other memory goes depends on how long steps take.
    assert any(is_noticed(seed) for seed in range(1, 9))


def step_often(engine: Engine) -> None:
    """For all that there may have been no time for before the first step."""
    for _ in range(20):
        engine.step()


def resident_bytes(engine: Engine, model: str) -> int:
    """Of the model's pool, as the kernel counts them."""
    cache = engine.runtime(model)._kv_pool.cache
    num_pages = -(-cache.numel() * cache.element_size() // mmap.PAGESIZE)
    # Of these pages alone: the kernel may have joined neighbouring mappings.
    states = (ctypes.c_ubyte * num_pages)()
    address = ctypes.c_void_p(cache.data_ptr())
    length = ctypes.c_size_t(num_pages * mmap.PAGESIZE)
    assert ctypes.CDLL(None, use_errno=True).mincore(address, length, states) == 0
    return sum(state & 1 for state in states) * mmap.PAGESIZE


def test_the_process_holds_no_more_than_is_granted_and_less_when_a_model_goes_idle(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_shared(*(model_of(path) for path in checkpoints.values()), kv_bytes=900_000)
    late_s = [0.0]
    arbiter = engine.kv_sharing.device
    monkeypatch.setattr(arbiter, "_clock", lambda: time.monotonic() + late_s[0])
    requests = [
        make_request(f"{name}{number}", [number + 5] * 150, GREEDY, "best_effort", name)
        for name in checkpoints
        for number in range(4)
    ]
    most = dict.fromkeys(checkpoints, 0)

    def look(step: int) -> None:
        for stats in engine.stats():
            resident = resident_bytes(engine, stats.name)
            assert resident <= stats.kv_granted_bytes
            most[stats.name] = max(most[stats.name], resident)

    run_all(engine, requests, after_step=look)
    assert all(num_bytes > 300_000 for num_bytes in most.values())
    late_s[0] += 2.0
    step_often(engine)
    for stats in engine.stats():
        resident = resident_bytes(engine, stats.name)
        assert resident <= stats.kv_granted_bytes == stats.kv_cached_bytes > 0
    late_s[0] += 100.0
    step_often(engine)
    assert [resident_bytes(engine, name) for name in checkpoints] == [0, 0]


def test_measuring_leaves_nothing_behind(checkpoints: dict[str, Path]) -> None:
    engine = make_shared(*(model_of(path) for path in checkpoints.values()), kv_bytes=900_000)
    run_all(engine, [make_request("r", [5] * 100, model="a")])
    assert resident_bytes(engine, "a") > 0
    runtime = engine.runtime("a")
    runtime.start_over(runtime.scheduler.settings, None)
    assert resident_bytes(engine, "a") == 0
    assert len(run_all(engine, [make_request("s", [5] * 100, model="a")])["s"].token_ids) == 16


@pytest.mark.parametrize(
    ("kv_bytes", "fields", "problem"),
    [
        (700_000, {"device_kv_floor_bytes": 400_000}, r"^device\.kv_bytes: 700000 bytes are less"),
        (700_000, {"device_kv_floor_bytes": 100}, r"device_kv_floor_bytes: memory moves in units"),
        (300_000, {}, r"^models\.a\.max_model_len: the .* no other model's device_kv_floor_bytes"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(
    checkpoints: dict[str, Path], kv_bytes: int, fields: dict[str, int], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_shared(*(model_of(path, **fields) for path in checkpoints.values()), kv_bytes=kv_bytes)


def test_the_longest_request_goes_by_what_the_floors_of_others_leave(
    checkpoints: dict[str, Path],
) -> None:
    models = [
        replace(model_of(path, device_kv_floor_bytes=200_000), max_model_len=None)
        for path in checkpoints.values()
    ]
    engine = make_shared(*models, kv_bytes=600_000)
    for info in engine.models:
        assert info.max_model_len * info.kv_bytes_per_token <= 400_000
        assert (info.max_model_len + 32) * info.kv_bytes_per_token > 400_000
