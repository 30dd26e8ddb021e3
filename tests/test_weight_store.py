"""Weights that are equal are in memory once, as long as a model holds them."""

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from weight_builders import CPU, last_logits, load, resident_after_each, write_family

from omniserve.errors import ConfigError
from omniserve.models.linear import can_pack
from omniserve.models.loading import load_config, open_model, read_model
from omniserve.models.row_ops import TorchRowOps
from omniserve.models.weight_digest import weight_digest
from omniserve.models.weight_sharing import weight_sharing
from omniserve.models.weight_store import ModelWeights, WeightStore
from omniserve.synthetic.create import write_checkpoint

PROMPT = list(range(30, 60))
OVERRIDES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3_moe": {},
    "mixtral": {},
}


@pytest.fixture(scope="module", params=OVERRIDES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base of four layers, and two fine-tunes that differ in the last one."""
    overrides = {"num_hidden_layers": 4} | OVERRIDES[request.param]
    directory = tmp_path_factory.mktemp("family")
    return write_family(directory, request.param, overrides=overrides)


def test_fine_tunes_hold_what_is_equal_once(family: list[Path]) -> None:
    store = WeightStore()
    models = [load(path, store) for path in family]
    first, *others = models
    for other in others:
        assert [a is b for a, b in zip(first.layers, other.layers, strict=True)] == [
            *(True, True, True),
            False,
        ]
        assert other._embedding is first._embedding
        assert other._norm.weight is first._norm.weight
        assert other.rotary._cos is first.rotary._cos
    sharing = weight_sharing({path.name: m.weights for path, m in zip(family, models, strict=True)})
    last = _last_layer_bytes(family[0])
    total = sum(weight.num_bytes for weight in first.weights.held)
    for each in sharing.values():
        # Norms of heads are held once for each head.
        assert last <= each.own_bytes < 1.05 * last
        assert each.own_bytes + each.shared_bytes == total
    own_bytes = sharing["base"].own_bytes
    assert store.num_bytes == total + 2 * own_bytes
    assert sharing["base"].shared_with == dict.fromkeys(
        ("finetune-1", "finetune-2"), total - own_bytes
    )


def _last_layer_bytes(path: Path) -> int:
    tensors = load_file(path / "model.safetensors")
    return sum(tensor.nbytes for name, tensor in tensors.items() if "layers.3." in name)


def test_shared_models_compute_what_separate_ones_do(family: list[Path]) -> None:
    store = WeightStore()
    together = [load(path, store) for path in family]
    logits = [last_logits(model, PROMPT) for model in together]
    for path, ours in zip(family, logits, strict=True):
        assert torch.equal(ours, last_logits(load(path, WeightStore()), PROMPT))
    # Else the comparison would not see layers that were mixed up.
    assert not torch.equal(logits[0].argmax(-1), logits[1].argmax(-1))
    assert not torch.equal(logits[1].argmax(-1), logits[2].argmax(-1))


def test_a_model_that_goes_takes_only_what_was_its_own(family: list[Path]) -> None:
    store = WeightStore()
    first, second = (load(path, store) for path in family[:2])
    before, expected = store.num_bytes, last_logits(second, PROMPT)
    own = weight_sharing({"first": first.weights, "second": second.weights})["first"].own_bytes
    del first
    gc.collect()
    assert store.num_bytes == before - own
    assert torch.equal(last_logits(second, PROMPT), expected)
    del second
    gc.collect()
    assert (len(store), store.num_bytes, len(store._layers)) == (0, 0, 0)


def test_a_model_that_is_taken_apart_leaves_others_whole(family: list[Path]) -> None:
    store = WeightStore()
    first, second = (load(path, store) for path in family[:2])
    expected, before = last_logits(second, PROMPT), store.num_bytes
    shared = sum(weight.num_bytes for weight in second.weights.held)
    sizes = []
    for _ in first.take_apart():
        sizes.append(store.num_bytes)
    del first
    gc.collect()
    assert store.num_bytes == shared < before
    # Piece by piece: nobody waits for all of them at once.
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3
    assert torch.equal(last_logits(second, PROMPT), expected)


def test_room_is_asked_for_what_no_other_model_has() -> None:
    store, asked = WeightStore(), list[int]()
    tensor, modules = torch.randn(64, 64), [torch.nn.Linear(64, 64) for _ in range(2)]
    sources = [torch.nn.Linear(64, 64) for _ in range(2)]
    for source, module in zip(sources, modules, strict=True):
        source.load_state_dict(module.state_dict())
    weights = [ModelWeights(store, CPU, False, asked.append) for _ in range(2)]
    with torch.inference_mode():
        for mine, each in zip(weights, (modules, sources), strict=True):
            mine.tensor(tensor.clone())
            mine.linear(each)
    assert asked == [4 * 64 * 64, 4 * 2 * 64 * 65]


def test_without_room_nothing_is_kept(tmp_path: Path) -> None:
    (path,) = write_family(tmp_path, "llama", num_finetunes=0)
    store = WeightStore()

    def refuse(num_bytes: int) -> None:
        raise ConfigError(f"no room for {num_bytes} bytes")

    weights = ModelWeights(store, CPU, True, refuse)
    opened = open_model(path, load_config(path))
    with pytest.raises(ConfigError, match="no room for"):
        read_model(opened, weights, torch.float32, 64, TorchRowOps())
    assert len(store) == 0


def test_models_that_come_and_go_leave_nothing(family: list[Path]) -> None:
    store = WeightStore()
    stays = load(family[0], store)
    before = len(store), store.num_bytes, len(store._layers)
    for _ in range(3):
        for path in family:
            passes = load(path, store)
            assert all(a is b for a, b in zip(passes.layers[:3], stays.layers, strict=False))
            del passes
            gc.collect()
            assert (len(store), store.num_bytes, len(store._layers)) == before


def test_the_same_checkpoint_twice_takes_no_memory(family: list[Path]) -> None:
    store = WeightStore()
    one = load(family[0], store)
    before = len(store)
    two = load(family[0], store)
    assert len(store) == before
    assert one.layers == two.layers


def test_layers_are_shared_only_where_their_settings_agree(tmp_path: Path) -> None:
    """What a layer does is not in its weights alone."""
    config = {"num_hidden_layers": 2}
    paths = [
        write_checkpoint(
            tmp_path / name, arch="qwen3_moe", preset="tiny", overrides=config | changes
        )
        for name, changes in (
            ("base", {}),
            ("eps", {"rms_norm_eps": 1e-5}),
            ("routing", {"norm_topk_prob": False}),
            ("experts", {"num_experts_per_tok": 3}),
        )
    ]
    store = WeightStore()
    models = [load(path, store) for path in paths]
    for weights in (model.weights for model in models):
        assert store.num_bytes == sum(weight.num_bytes for weight in weights.held)
    assert len({id(model.layers[0]) for model in models}) == len(models)
    for path, model in zip(paths, models, strict=True):
        alone = load(path, WeightStore())
        assert torch.equal(last_logits(model, PROMPT), last_logits(alone, PROMPT))


def test_other_dtypes_share_nothing(tmp_path: Path) -> None:
    (path,) = write_family(tmp_path, "llama", num_finetunes=0)
    store = WeightStore()
    models = {str(dtype): load(path, store, dtype) for dtype in (torch.float32, torch.bfloat16)}
    sharing = weight_sharing({name: model.weights for name, model in models.items()})
    assert all(not each.shared_bytes and not each.shared_with for each in sharing.values())


def test_a_changed_file_changes_no_served_weight(tmp_path: Path) -> None:
    """Tensors may be read from a mapped file; what is served is a copy."""
    (path,) = write_family(tmp_path, "llama", num_finetunes=0)
    store = WeightStore()
    model = load(path, store)
    expected = last_logits(model, PROMPT)
    file = path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 4)
        opened.write(bytes(file.stat().st_size // 4))
    assert torch.equal(last_logits(model, PROMPT), expected)
    assert not torch.equal(last_logits(load(path, store), PROMPT), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_one_bit_makes_another_linear_layer(packed: bool) -> None:
    store = WeightStore()
    weights = [ModelWeights(store, CPU, packed) for _ in range(3)]
    modules = [torch.nn.Linear(64, 64) for _ in range(3)]
    for module in modules[1:]:
        module.load_state_dict(modules[0].state_dict())
    with torch.no_grad():
        bits = modules[2].bias.view(torch.int32)
        bits[-1] ^= 1
    with torch.inference_mode():
        one, same, other = (w.linear([m]) for w, m in zip(weights, modules, strict=True))
    assert one is same
    assert one is not other
    assert len(store) == 2


def test_a_tied_head_and_an_untied_one_of_the_same_bytes() -> None:
    store = WeightStore()
    embedding = torch.randn(128, 64)
    untied = torch.nn.Linear(64, 128, bias=False)
    untied.weight = torch.nn.Parameter(embedding.clone())
    packed, same = ModelWeights(store, CPU, True), ModelWeights(store, CPU, True)
    with torch.inference_mode():
        _, head = packed.embedding_and_head(embedding)
        assert same.linear([untied]) is head
        plain = ModelWeights(store, CPU, False)
        weight, head = plain.embedding_and_head(embedding)
        x = torch.randn(3, 64)
        torch.testing.assert_close(head(x), x @ embedding.T)
    # An accelerator's head reads the embedding where it is.
    assert sum(held.num_bytes for held in plain.held) == weight.nbytes


@given(st.integers(0, 3), st.integers(0, 40), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_digests_are_of_dtype_shape_and_bytes(rank: int, seed: int, dtype: str) -> None:
    torch.manual_seed(seed)
    tensor = torch.randn([seed % 5] * rank).to(getattr(torch, dtype))
    digest = weight_digest(tensor)
    assert len(digest) == 32
    assert weight_digest(tensor.clone()) == digest
    assert weight_digest(tensor[None]) != digest
    assert weight_digest(tensor.view(torch.int32 if dtype == "float32" else torch.int16)) != digest
    if rank == 2 and tensor.shape[0] > 1:
        assert weight_digest(tensor.T) != digest
        assert weight_digest(tensor.T.contiguous().T) == digest


def test_every_piece_of_a_large_tensor_counts() -> None:
    tensor = torch.zeros(5 << 18)
    digests = {weight_digest(tensor)}
    for place in range(0, tensor.numel(), (1 << 18) - 1):
        tensor[place] = 1.0
        digests.add(weight_digest(tensor))
        tensor[place] = 0.0
    assert len(digests) == 1 + len(range(0, tensor.numel(), (1 << 18) - 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resident_memory_of_three_fine_tunes(tmp_path: Path, dtype: str) -> None:
    """At most 1.6 times that of one model; what one had alone goes with it."""
    if not can_pack(CPU, getattr(torch, dtype)):
        pytest.skip(f"oneDNN cannot pack {dtype} here")
    shape = {
        "num_hidden_layers": 8,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    }
    paths = write_family(tmp_path, "llama", num_finetunes=3, dtype=dtype, overrides=shape)[1:]
    shared = resident_after_each(paths, dtype, is_shared=True)
    apart = resident_after_each(paths, dtype, is_shared=False)
    one = apart[0]
    assert one > 8 << 20, "too little to be measured"
    assert apart[2] > 2.7 * one
    assert shared[2] < 1.6 * one
    assert shared[3] < shared[2] - 0.15 * one
    assert shared[5] < 0.15 * one
