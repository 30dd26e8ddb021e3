"""What is told of shared weights: by the engine, as metrics, by the command."""

import gc
from pathlib import Path
from weakref import ref

import pytest
from engine_builders import make_engine, make_model_settings, make_request, run_all
from hypothesis import given
from hypothesis import strategies as st
from service_builders import sample
from weight_builders import write_family

from omniserve.commands.sharing import sharing_fields, sharing_sum, sharing_table
from omniserve.engine.core import Engine
from omniserve.engine.model_news import Refused
from omniserve.metrics import Metrics
from omniserve.models.weight_sharing import WeightSharing, weight_sharing
from omniserve.models.weight_store import StoredWeight
from omniserve.settings import ModelStats, WeightStats
from omniserve.v1 import omniserve_pb2 as pb


class Holder:
    """What a model holds."""

    def __init__(self, held: list[StoredWeight]) -> None:
        self.held = held


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(0, 15)), max_size=12))
def test_bytes_add_up_whoever_holds_what(weights: list[tuple[int, int]]) -> None:
    """Each weight with a bit for each of four models that hold it."""
    held: list[list[StoredWeight]] = [[], [], [], []]
    resident = 0
    for num_bytes, holders in weights:
        weight = StoredWeight(None, num_bytes)  # type: ignore[arg-type]
        resident += num_bytes if holders else 0
        for model in range(4):
            if holders & 1 << model:
                held[model].append(weight)
    told = weight_sharing({f"m{i}": Holder(each) for i, each in enumerate(held)})  # type: ignore[misc]
    total = sum(each.own_bytes + each.shared_bytes for each in told.values())
    saved = sum(each.saved_bytes for each in told.values())
    assert abs(total - saved - resident) <= len(told)
    for index, each in enumerate(held):
        mine = told[f"m{index}"]
        assert mine.own_bytes + mine.shared_bytes == sum(weight.num_bytes for weight in each)
        assert 2 * mine.saved_bytes >= mine.shared_bytes - 1
        for other, num_bytes in mine.shared_with.items():
            common = {id(weight) for weight in each} & {id(w) for w in held[int(other[1])]}
            assert num_bytes == sum(w.num_bytes for w in each if id(w) in common) > 0
            assert told[other].shared_with[f"m{index}"] == num_bytes


def test_what_is_told_follows_the_models_and_keeps_none() -> None:
    weight = StoredWeight(None, 100)  # type: ignore[arg-type]
    one, two = Holder([weight]), Holder([weight])
    is_there = ref(two)
    sharing = WeightSharing()
    both = sharing.of({"one": one, "two": two})  # type: ignore[dict-item]
    assert both["one"] == WeightStats(0, 100, 50, {"two": 100})
    assert sharing.of({"one": one, "two": two}) is both  # type: ignore[dict-item]
    del two
    gc.collect()
    assert is_there() is None
    assert sharing.of({"one": one})["one"] == WeightStats(100, 0, 0, {})  # type: ignore[dict-item]
    assert sharing.of({}) == {}


def test_an_engine_of_fine_tunes_tells_what_they_share(tmp_path: Path) -> None:
    paths = write_family(tmp_path, "qwen3")
    engine = make_engine(*(make_model_settings(path, name=path.name) for path in paths))
    stats = {each.name: each.weights for each in engine.stats()}
    for name, weights in stats.items():
        assert weights is not None
        assert 0 < weights.own_bytes < weights.shared_bytes
        assert set(weights.shared_with) == stats.keys() - {name}
        assert set(weights.shared_with.values()) == {weights.shared_bytes}
        assert abs(weights.saved_bytes - weights.shared_bytes * 2 / 3) <= 1
    engine.close()


def test_a_model_that_comes_and_goes_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    """Loaded beside its base, which is then unloaded: it goes on, and is not told to share."""
    base, finetune = write_family(tmp_path, "qwen3", num_finetunes=1)
    engine = make_engine(make_model_settings(base, name="base"))
    alone = make_engine(make_model_settings(finetune, name="finetune"))
    prompt = list(range(30, 60))
    expected = run_all(alone, [make_request("a", prompt, model="finetune")])["a"].token_ids

    engine.begin_load(1, make_model_settings(finetune, name="finetune"))
    settle(engine)
    assert {each.name for each in engine.stats() if told(each).shared_bytes} == {"base", "finetune"}
    got = run_all(engine, [make_request("b", prompt, model="finetune")])["b"].token_ids
    assert got == expected
    engine.begin_unload(2, "base")
    settle(engine)
    got = run_all(engine, [make_request("c", prompt, model="finetune")])["c"].token_ids
    assert got == expected
    (left,) = engine.stats()
    (before,) = alone.stats()
    assert told(left) == told(before)
    assert told(left).shared_bytes == told(left).saved_bytes == 0
    engine.close()
    alone.close()


def settle(engine: Engine) -> None:
    while engine.is_changing:
        engine.step()
        assert not any(isinstance(news, Refused) for news in engine.take_news())


def told(stats: ModelStats) -> WeightStats:
    assert stats.weights is not None
    return stats.weights


def test_metrics() -> None:
    metrics = Metrics()
    weights = WeightStats(30, 70, 35, {"other": 70})
    stats = {"demo": ModelStats("demo", {}, {}, 0, 0, 0, 0, 0, 0.0, weights=weights)}
    metrics.watch_engine(lambda: stats)
    demo = 'model="demo"'
    assert sample(metrics, "omniserve_weights_bytes", (demo, 'kind="own"')) == 30
    assert sample(metrics, "omniserve_weights_bytes", (demo, 'kind="shared"')) == 70
    assert sample(metrics, "omniserve_weights_saved_bytes", (demo,)) == 35


@pytest.fixture
def models() -> list[pb.ModelStatus]:
    mib = 1 << 20
    shared = {"chat": 60 * mib, "code": 10 * mib}
    return [
        pb.ModelStatus(
            name="base",
            weights=pb.WeightStatus(
                own_bytes=40 * mib,
                shared_bytes=60 * mib,
                saved_bytes=30 * mib,
                shared_with=shared,
            ),
        ),
        pb.ModelStatus(name="alone", weights=pb.WeightStatus(own_bytes=100 * mib)),
    ]


def test_the_table(models: list[pb.ModelStatus]) -> None:
    assert sharing_table(models).rows == [
        ["base", "40.0", "60.0", "30.0", "chat (60.0), code (10.0)"],
        ["alone", "100.0", "0.0", "0.0", "-"],
    ]
    told = sharing_sum(models)
    assert told == "170.0 MiB are in memory, where 200.0 MiB are used: 15% saved"
    assert sharing_sum([]) == "No weights are in memory."


def test_what_a_model_is_called_cannot_command_the_terminal() -> None:
    weights = pb.WeightStatus(own_bytes=1, shared_with={"\x1b[31mother": 1})
    (row,) = sharing_table([pb.ModelStatus(name="\x1b[2Jname", weights=weights)]).rows
    assert "\x1b" not in "".join(row)


def test_json_is_in_bytes(models: list[pb.ModelStatus]) -> None:
    fields = sharing_fields(models)
    assert fields["held_bytes"] == 200 << 20
    assert fields["resident_bytes"] == 170 << 20
    assert fields["models"][0]["name"] == "base"
    assert fields["models"][0]["shared_with"] == {"chat": 60 << 20, "code": 10 << 20}
