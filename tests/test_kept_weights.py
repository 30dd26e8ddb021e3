"""Weights that are kept while their model sleeps, and of which it is built again."""

import shutil
from pathlib import Path

import pytest
import torch
from engine_builders import make_engine, make_model_settings
from oracle import Oracle
from test_model_changes import Run
from test_model_sleep import sleep, wake
from test_weight_store import OVERRIDES
from weight_builders import CPU, last_logits, write_family

from omniserve.engine import keeping
from omniserve.engine.model_news import Loaded, Refused
from omniserve.models.decoder import DecoderModel
from omniserve.models.kept_weights import KeptModel, KeptStore, KeptWeight, RecalledWeights
from omniserve.models.loading import load_config, open_model, read_model, recall_model
from omniserve.models.row_ops import TorchRowOps
from omniserve.models.weight_store import ModelWeights, WeightStore
from omniserve.synthetic.create import write_checkpoint

PROMPT = list(range(30, 60))


@pytest.fixture(scope="module", params=OVERRIDES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and a fine-tune."""
    overrides = {"num_hidden_layers": 2} | OVERRIDES[request.param]
    directory = tmp_path_factory.mktemp("family")
    return write_family(
        directory, request.param, num_finetunes=1, layers_from=0.5, overrides=overrides
    )


def read(path: Path, store: WeightStore) -> DecoderModel:
    """Not packed, as on an accelerator."""
    weights = ModelWeights(store, CPU, packed=False)
    opened = open_model(path, load_config(path))
    return read_model(opened, weights, torch.float32, 64, TorchRowOps())


def keep(model: DecoderModel, store: KeptStore) -> KeptModel:
    kept: dict[bytes, KeptWeight] = {}
    for _ in store.keep(model.weights, kept):
        pass
    return KeptModel(model.weights.order, kept, model.weights.has_tied_head)


def recall(path: Path, kept: KeptModel, store: WeightStore) -> DecoderModel:
    weights = RecalledWeights(store, CPU, kept)
    return recall_model(open_model(path, load_config(path)), weights, 64, TorchRowOps())


def test_a_model_of_kept_weights_computes_what_it_did(family: list[Path]) -> None:
    store, kept_store = WeightStore(), KeptStore()
    for path in family:
        model = read(path, store)
        expected, order = last_logits(model, PROMPT), model.weights.order
        num_bytes = store.num_bytes
        kept = keep(model, kept_store)
        del model
        assert store.num_bytes == 0
        # What was on the device is gone: nothing of it can be used by mistake.
        woken = recall(path, kept, store)
        assert torch.equal(last_logits(woken, PROMPT), expected)
        assert (woken.weights.order, store.num_bytes) == (order, num_bytes)
        assert woken.num_parameters > 0
        del woken


def test_what_others_hold_is_not_brought_back_twice(family: list[Path]) -> None:
    store, kept_store = WeightStore(), KeptStore()
    base, finetune = (read(path, store) for path in family)
    num_bytes, shared = store.num_bytes, base.layers[0]
    assert finetune.layers[0] is shared
    expected = last_logits(finetune, PROMPT)
    kept = keep(finetune, kept_store)
    assert kept_store.lacking_bytes(finetune.weights) == 0
    # Of the base, what the fine-tune has changed is lacking.
    assert 0 < kept_store.lacking_bytes(base.weights) < num_bytes / 2
    both = [kept, keep(base, kept_store)]
    common = set(both[0].weights) & set(both[1].weights)
    assert common and all(both[0].weights[each] is both[1].weights[each] for each in common)
    del finetune
    woken = recall(family[1], kept, store)
    assert woken.layers[0] is shared and store.num_bytes == num_bytes
    assert torch.equal(last_logits(woken, PROMPT), expected)


def test_kept_weights_are_copies_and_go_with_their_models(family: list[Path]) -> None:
    store, kept_store = WeightStore(), KeptStore()
    model = read(family[0], store)
    kept = keep(model, kept_store)
    held = {value.data_ptr() for each in model.weights.held for value in tensors_of(each.value)}
    copies = [t for each in kept.weights.values() for t in each.tensors if t is not None]
    assert copies and not held & {copy.data_ptr() for copy in copies}
    lacking = kept_store.lacking_bytes(model.weights)
    for _ in kept.take_apart():
        pass
    del copies
    assert lacking == 0 < kept_store.lacking_bytes(model.weights)


def tensors_of(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parameters = value.parameters  # type: ignore[attr-defined]
    return [each for each in parameters if each is not None]


# In an engine, as on an accelerator


@pytest.fixture
def keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniserve.engine.model_changes.keeps_weights", lambda device: True)
    monkeypatch.setattr("omniserve.engine.build.can_pack", lambda device, dtype: False)


@pytest.mark.usefixtures("keeps")
def test_an_engine_wakes_a_model_without_reading_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "m", arch="qwen3", preset="tiny", seed=3)
    settings = make_model_settings(path, name="m")
    run = Run(make_engine(settings, poll_arrivals=lambda: None))
    for _ in range(2):
        run.add("m", "latency_sensitive")
        run.settle()
        info = sleep(run, "m")
        assert run.engine._changes._store.num_bytes == 0
        with monkeypatch.context() as patched:
            patched.setattr("omniserve.engine.build.read_model", None)
            woken = wake(run, settings, info.digest)
        assert isinstance(woken, Loaded) and woken.info == info
    run.add("m", "best_effort")
    run.settle()
    run.check({"m": Oracle(path)})
    # Nothing is kept of a model that is awake, nor of one that is gone.
    kept = run.engine._changes._kept
    assert kept._store.lacking_bytes(run.engine.runtime("m").weights) > 0
    weights = run.engine.runtime("m").weights
    sizes = kept._store.lacking_bytes(weights)
    sleep(run, "m")
    run.unload("m")
    assert kept.take("m") is None and len(kept._store._weights) == 0 < sizes


@pytest.mark.usefixtures("keeps")
def test_small_files_that_changed_are_seen_also_where_weights_were_kept(
    tmp_path: Path,
) -> None:
    path = write_checkpoint(tmp_path / "m", arch="llama", preset="tiny", seed=3)
    settings = make_model_settings(path, name="m")
    run = Run(make_engine(settings, poll_arrivals=lambda: None))
    digest = sleep(run, "m").digest
    (path / "tokenizer_config.json").write_text("{}")
    refused = wake(run, settings, digest)
    assert isinstance(refused, Refused) and "its files have changed" in refused.message
    assert run.engine._changes._store.num_bytes == 0


@pytest.mark.usefixtures("keeps")
def test_where_host_memory_lacks_the_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_checkpoint(tmp_path / "m", arch="llama", preset="tiny", seed=3)
    settings = make_model_settings(Path(shutil.copytree(path, tmp_path / "copy")), name="m")
    run = Run(make_engine(settings, poll_arrivals=lambda: None))
    for free_bytes in ([1000], [1 << 40, 1 << 40, 1000]):
        # From the begin on, or since another one has taken it.
        left = iter(free_bytes)
        monkeypatch.setattr(keeping, "available_bytes", left.__next__)
        caplog.clear()
        digest = sleep(run, "m").digest
        assert next(left, None) is None
        assert "weights_not_kept" in [each.getMessage() for each in caplog.records]
        assert len(run.engine._changes._kept._store._weights) == 0
        assert isinstance(wake(run, settings, digest), Loaded)
    run.add("m", "best_effort")
    run.settle()
    run.check({"m": Oracle(path)})
