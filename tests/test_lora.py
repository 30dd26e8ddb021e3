"""LoRA adapters: what they add to their base, and what is refused before anything is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_builders import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    edit_config,
    edit_weights,
    merged,
    write_adapted,
)
from safetensors.torch import load_file
from weight_builders import CPU, last_logits, load

from omniserve.adapter_checkpoint import inspect_adapter
from omniserve.cli import main
from omniserve.errors import CheckpointError
from omniserve.models.decoder import DecoderModel
from omniserve.models.linear import can_pack
from omniserve.models.loading import load_config, open_model, read_model
from omniserve.models.lora import DeltaPart, LinearDelta
from omniserve.models.row_ops import TorchRowOps
from omniserve.models.weight_sharing import weight_sharing
from omniserve.models.weight_store import ModelWeights, WeightStore
from omniserve.synthetic.adapter import write_adapter
from omniserve.synthetic.create import write_checkpoint

PROMPT = [5, 99, 311, 42, 17, 256, 8, 77]
ATTENTION = tuple(f"self_attn.{each}_proj" for each in "qkvo")
MLP = tuple(f"mlp.{each}_proj" for each in ("gate", "up", "down"))


def load_adapter(
    base: Path, adapter: Path, store: WeightStore, dtype: torch.dtype = torch.float32
) -> DecoderModel:
    return load(base, store, dtype, adapter=adapter)


def logits_of(model: DecoderModel) -> torch.Tensor:
    return last_logits(model, PROMPT)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return write_adapted(tmp_path_factory.mktemp("lora"), "qwen3", num_adapters=3)


@pytest.fixture
def adapter(family: tuple[Path, list[Path]], tmp_path: Path) -> Path:
    """A copy of one that changes everything, to be changed itself."""
    return Path(shutil.copytree(family[1][0], tmp_path / "adapter"))


def test_parts_of_a_fused_linear_change_their_own_outputs_of_their_own_rows() -> None:
    torch.manual_seed(0)
    x, out = torch.randn(7, 12, dtype=torch.float64), torch.randn(7, 10, dtype=torch.float64)
    a1, b1 = torch.randn(2, 12, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    a2, b2 = torch.randn(5, 12, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    parts = [
        DeltaPart(slice(0, 3), slice(0, 2), b1, 0.5),
        DeltaPart(slice(6, 10), slice(2, 7), b2, -2.0),
    ]
    delta = LinearDelta(torch.cat([a1, a2]), parts)
    changed = out.clone()
    delta.add_to(changed[2:5], x[2:5])
    for row in range(7):
        for column in range(10):
            expected = float(out[row, column])
            for columns, a, b, scale in ((range(3), a1, b1, 0.5), (range(6, 10), a2, b2, -2.0)):
                if row in range(2, 5) and column in columns:
                    expected += scale * sum(
                        float(b[columns.index(column), k] * a[k, j] * x[row, j])
                        for k in range(len(a))
                        for j in range(12)
                    )
            assert float(changed[row, column]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral"])
def test_logits_are_those_of_merged_weights(tmp_path: Path, arch: str) -> None:
    base, adapters = write_adapted(tmp_path, arch, num_adapters=3)
    store = WeightStore()
    plain = logits_of(load(base, store))
    for index, adapter in enumerate(adapters):
        model = load_adapter(base, adapter, store)
        expected = logits_of(
            load(merged(base, adapter, tmp_path / f"merged-{index}"), WeightStore())
        )
        torch.testing.assert_close(logits_of(model), expected, atol=1e-4, rtol=1e-4)
        assert (expected - plain).abs().max() > 0.1


def test_adapters_of_attention_beside_experts(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", arch="qwen3_moe", preset="tiny")
    adapter = write_adapter(base, tmp_path / "adapter")
    expected = logits_of(load(merged(base, adapter, tmp_path / "merged"), WeightStore()))
    got = logits_of(load_adapter(base, adapter, WeightStore()))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_agree_within_their_precision(
    family: tuple[Path, list[Path]], tmp_path: Path, dtype: torch.dtype
) -> None:
    base, adapters = family
    model = load_adapter(base, adapters[0], WeightStore(), dtype)
    expected = logits_of(load(merged(base, adapters[0], tmp_path / "merged"), WeightStore()))
    error = (logits_of(model).float() - expected).square().mean().sqrt()
    assert error < 0.05 * expected.square().mean().sqrt()


def test_rows_of_several_adapters_in_one_batch_get_their_own(
    family: tuple[Path, list[Path]],
) -> None:
    base, adapters = family
    store = WeightStore()
    models = [load(base, store), *(load_adapter(base, each, store) for each in adapters)]
    assert all(each.layers[0] is models[0].layers[0] for each in models)
    layer = models[0].layers[0]
    counts = [3, 1, 5, 2]
    with torch.inference_mode():
        x = torch.randn(sum(counts), models[0].hidden_size)
        rotary = models[0].rotary.at(torch.arange(len(x)))
        attended = torch.randn(len(x), models[0].num_heads * models[0].head_dim)
        starts = [sum(counts[:index]) for index in range(len(counts))]
        rows = [slice(start, start + n) for start, n in zip(starts, counts, strict=True)]
        deltas = [
            delta
            for model, mine in zip(models, rows, strict=True)
            for delta in model.deltas_of(0, mine)
        ]
        assert len(deltas) == 3
        together = (*layer.pre(x, rotary, deltas), layer.post(x, attended, deltas))
        for model, mine in zip(models, rows, strict=True):
            own = model.deltas_of(0)
            cos, signed_sin = rotary
            alone = (
                *layer.pre(x[mine], (cos[mine], signed_sin[mine]), own),
                layer.post(x[mine], attended[mine], own),
            )
            for ours, theirs in zip(together, alone, strict=True):
                torch.testing.assert_close(ours[mine], theirs, atol=1e-5, rtol=1e-5)


def test_an_adapter_costs_its_deltas_and_the_base_may_go_first(
    family: tuple[Path, list[Path]],
) -> None:
    base, adapters = family
    store = WeightStore()
    model = load(base, store)
    before, num_parameters = store.num_bytes, model.num_parameters
    adapted = load_adapter(base, adapters[0], store)
    num_own = inspect_adapter(adapters[0], base).files.num_parameters
    assert store.num_bytes - before == 4 * num_own
    assert adapted.num_parameters == num_parameters + num_own
    expected = logits_of(adapted)
    del model
    assert torch.equal(logits_of(adapted), expected)
    for _ in adapted.take_apart():
        pass
    del adapted
    assert len(store) == 0


def test_a_base_that_is_there_is_not_read_again_unless_its_files_have_changed(
    family: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(family[0], tmp_path / "base"))
    adapters, store = family[1], WeightStore()
    base_bytes = sum(each.nbytes for each in load_file(base / "model.safetensors").values())

    def read(adapter: Path) -> tuple[DecoderModel, int]:
        told: list[tuple[int, int]] = []
        weights = ModelWeights(store, CPU, can_pack(CPU, torch.float32))
        opened = open_model(base, load_config(base), adapter)
        model = read_model(
            opened, weights, torch.float32, 64, TorchRowOps(), lambda *each: told.append(each)
        )
        own_bytes = sum(each.nbytes for each in load_file(adapter / WEIGHTS).values())
        assert told[-1][0] == told[-1][1]
        return model, told[-1][1] - own_bytes

    first, num_read = read(adapters[0])
    assert num_read == base_bytes
    second, num_read = read(adapters[1])
    assert num_read == 0
    expected = logits_of(second)
    total = sum(each.num_bytes for each in first.weights.held)
    shared = weight_sharing({"first": first.weights, "second": second.weights})["first"]
    assert total - shared.shared_bytes == shared.own_bytes < total / 10
    again, _ = read(adapters[0])
    assert again.weights.digests == first.weights.digests
    del first, again
    third, num_read = read(adapters[2])
    assert num_read == 0 and torch.equal(logits_of(second), expected)
    # Written anew, with other weights.
    write_checkpoint(base, arch="qwen3", preset="tiny", seed=9, force=True)
    changed, num_read = read(adapters[1])
    assert num_read == base_bytes and not torch.equal(logits_of(changed), expected)
    del second, third, changed
    assert len(store) == len(store.parts) == 0


# What adapter_config.json may say


def scales_of(base: Path, adapter: Path) -> dict[str, float]:
    summary = inspect_adapter(adapter, base)
    places = {each.rpartition(".")[2]: each for each in (*ATTENTION, *MLP)}
    return {
        f"model.layers.{layer}.{places[name]}": projection.scale
        for layer, changed in summary.layers.items()
        for name, projection in changed.items()
    }


def keep(adapter: Path, wanted: Callable[[str], bool]) -> None:
    """The tensors of these modules alone."""
    edit_weights(
        adapter,
        lambda tensors: {
            name: tensor
            for name, tensor in tensors.items()
            if wanted(name.removeprefix(PREFIX).partition(".lora_")[0])
        },
    )


def test_scales_follow_patterns_and_rank_stabilisation(
    family: tuple[Path, list[Path]], adapter: Path, tmp_path: Path
) -> None:
    base, _ = family

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "layers.1.self_attn.k_proj" in name:
                tensors[name] = (tensor[:2] if "lora_A" in name else tensor[:, :2]).contiguous()

    edit_weights(adapter, narrow)
    edit_config(
        adapter,
        use_rslora=True,
        lora_alpha=6,
        rank_pattern={r"layers\.1\.self_attn\.k_proj": 2},
        alpha_pattern={"down_proj": 10, r"^model\.layers\.0\.mlp\.down_proj": 7, "roj": 99},
    )
    expected = {
        f"model.layers.{layer}.{name}": 6 / 2.0 for layer in range(3) for name in (*ATTENTION, *MLP)
    }
    expected |= {f"model.layers.{layer}.mlp.down_proj": 10 / 2.0 for layer in range(3)}
    expected["model.layers.1.self_attn.k_proj"] = 6 / 2**0.5
    assert scales_of(base, adapter) == pytest.approx(expected)
    got = logits_of(load_adapter(base, adapter, WeightStore()))
    oracle = load(merged(base, adapter, tmp_path / "merged", expected), WeightStore())
    torch.testing.assert_close(got, logits_of(oracle), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "modules"),
    [
        ({"target_modules": ["q_proj", "mlp.up_proj"]}, ("self_attn.q_proj", "mlp.up_proj")),
        ({"target_modules": ["q_proj", "query", "c_attn"]}, ("self_attn.q_proj",)),
        ({"target_modules": r".*\.(q|down)_proj$"}, ("self_attn.q_proj", "mlp.down_proj")),
        ({"target_modules": "all-linear"}, (*ATTENTION, *MLP)),
        ({"target_modules": "ALL-LINEAR", "exclude_modules": ["mlp.gate_proj"]}, None),
        ({"target_modules": r"model\.layers\.\d+\.(?:mlp|nothing)\.\w+"}, MLP),
        ({"target_modules": "all-linear", "exclude_modules": r".*self_attn.*"}, MLP),
    ],
)
def test_targets_are_what_peft_takes_them_for(
    family: tuple[Path, list[Path]],
    adapter: Path,
    config: dict[str, object],
    modules: tuple[str, ...] | None,
) -> None:
    wanted = modules or tuple(each for each in (*ATTENTION, *MLP) if "gate" not in each)
    edit_config(adapter, **config)
    keep(adapter, lambda module: module.endswith(wanted))
    found = {
        name.partition(".")[2].partition(".")[2].partition(".")[2]
        for name in scales_of(family[0], adapter)
    }
    assert found == set(wanted)


@pytest.mark.parametrize(("value", "layers"), [(1, {1}), ([0, 2], {0, 2}), ([], {0, 1, 2})])
def test_some_layers_alone(
    family: tuple[Path, list[Path]],
    adapter: Path,
    tmp_path: Path,
    value: object,
    layers: set[int],
) -> None:
    base, _ = family
    edit_config(adapter, layers_to_transform=value, layers_pattern="layers")
    keep(adapter, lambda module: int(module.split(".")[2]) in layers)
    assert set(inspect_adapter(adapter, base).layers) == layers
    model = load_adapter(base, adapter, WeightStore())
    assert [bool(model.deltas_of(index)) for index in range(3)] == [i in layers for i in range(3)]
    oracle = load(merged(base, adapter, tmp_path / "merged"), WeightStore())
    torch.testing.assert_close(logits_of(model), logits_of(oracle), atol=1e-4, rtol=1e-4)


# What is refused


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        inspect_adapter(adapter, base)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"use_dora": True}, "use_dora: DoRA"),
        ({"use_wonder": True}, "use_wonder: is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: "),
        ({"bias": "lora_only"}, "bias is 'lora_only'; only 'none'"),
        ({"lora_bias": True}, "lora_bias: "),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: "),
        ({"trainable_token_indices": [1]}, "trainable_token_indices: "),
        ({"layer_replication": [[0, 2]]}, "layer_replication: "),
        ({"target_parameters": ["x"]}, "target_parameters: "),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1"),
        ({"r": 0}, "r is 0, not a whole number"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', not a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000000"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e+300, not a number from -1e+09 to 1e+09"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"rank_pattern": ["x"]}, "rank_pattern is ['x'], not a mapping"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern: 'q_proj' is -1"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern: 'q_proj' is None"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: "),
        ({"target_modules": None}, "target_modules: names nothing"),
        ({"target_modules": [1]}, "target_modules is [1], not a text or a list"),
        ({"target_modules": "(?=q)"}, "invalid perl operator: (?"),
        ({"target_modules": "(" * 30}, "missing ): "),
        ({"target_modules": "q_proj\ud800"}, "target_modules: 'q_proj\\ud800': holds half"),
        ({"rank_pattern": {"\ud800": 1}}, "rank_pattern: "),
        ({"target_modules": ["c_attn"]}, "an adapter for another base"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head cannot be changed by an adapter"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens cannot be changed by an adapter"),
        ({"target_modules": ["q_proj"]}, "k_proj, which target_modules does not mean"),
        ({"layers_to_transform": [-1]}, "layers_to_transform is [-1]"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "layers_pattern is 'h'"),
        ({"layers_to_transform": 0, "target_modules": ".*q_proj"}, "layers_to_transform: target"),
        ({"r": 5}, "says rank 5"),
    ],
)
def test_a_config_that_is_not_served_is_refused_by_its_key(
    family: tuple[Path, list[Path]], adapter: Path, config: dict[str, object], problem: str
) -> None:
    edit_config(adapter, **config)
    message = refusal(family[0], adapter)
    assert problem in message
    assert str(adapter) in message


@pytest.mark.parametrize("expression", ["(a*)*b", "((a?){250}){250}", "(.|.)" * 60, "(.*.*)*" * 9])
def test_an_expression_that_would_take_for_ever_does_not(
    family: tuple[Path, list[Path]], adapter: Path, expression: str
) -> None:
    edit_config(adapter, target_modules=expression)
    refusal(family[0], adapter)


def test_files_that_are_missing_or_broken_are_refused(
    family: tuple[Path, list[Path]], adapter: Path, tmp_path: Path
) -> None:
    base = family[0]
    weights, config = adapter / WEIGHTS, adapter / CONFIG
    data, text = weights.read_bytes(), config.read_text()
    assert "no such directory" in refusal(base, tmp_path / "nothing")
    assert "not a directory" in refusal(base, config)
    assert "no such directory" in refusal(tmp_path / "nothing", adapter)
    assert "adapter_config.json is missing" in refusal(base, base)
    assert "holds an adapter, not a model" in refusal(adapter, adapter)
    for broken in ("", "{", "[1]", "\x00"):
        config.write_text(broken)
        assert "adapter_config.json" in refusal(base, adapter)
    config.write_text(text)
    for broken_bytes in (b"", b"x", data[:100], b"\xff" * 100, data[:8] + b"[]" + data[10:]):
        weights.write_bytes(broken_bytes)
        assert WEIGHTS in refusal(base, adapter)
    weights.write_bytes(data[:-40])
    assert "truncated: 40 of" in refusal(base, adapter)
    weights.unlink()
    assert f"{WEIGHTS} is missing" in refusal(base, adapter)
    (adapter / "adapter_model.bin").write_bytes(b"pickled")
    assert "adapter_model.bin is pickled" in refusal(base, adapter)


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name.replace(old, new): each for name, each in tensors.items()}


def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: each for name, each in tensors.items() if part not in name}


def reshaped(part: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update(
        {name: torch.zeros(shape) for name in tensors if part in name}
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (renamed("base_model.model.", ""), "which is no lora_A or lora_B"),
        (renamed("lora_B.weight", "lora_magnitude_vector"), "which is no lora_A or lora_B"),
        (renamed("layers.2", "layers.20"), "the base has no 'model.layers.20"),
        (renamed("q_proj", "qkv"), "an adapter for another base"),
        (without("layers.1.mlp.up_proj.lora_B"), "holds no lora_B of 'model.layers.1.mlp.up_proj'"),
        (without("layers.1.mlp.up_proj"), "holds nothing of model.layers.1.mlp.up_proj"),
        (without("layers"), "holds no tensors"),
        (reshaped("layers.0.mlp.up_proj.lora_A", 4, 65), "do not fit the base's [192, 64]"),
        (reshaped("layers.0.mlp.up_proj.lora_B", 191, 4), "do not fit the base's [192, 64]"),
        (reshaped("layers.0.mlp.up_proj.lora_B", 192, 5), "says rank 4"),
        (reshaped("layers.0.mlp.up_proj.lora_A", 4), "matrices of"),
        (
            lambda tensors: {name: each.to(torch.int32) for name, each in tensors.items()},
            "'I32'",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    family: tuple[Path, list[Path]],
    adapter: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None],
    problem: str,
) -> None:
    edit_weights(adapter, change)
    assert problem in refusal(family[0], adapter)


@pytest.mark.parametrize("arch", ["qwen3_moe", "mixtral"])
def test_adapters_of_experts_are_refused(
    family: tuple[Path, list[Path]], adapter: Path, tmp_path: Path, arch: str
) -> None:
    base = write_checkpoint(tmp_path / "base", arch=arch, preset="tiny")
    assert "for another base" in refusal(base, family[1][0]) or "cannot be changed" in refusal(
        base, family[1][0]
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_before_the_base_is_read(
    family: tuple[Path, list[Path]],
    adapter: Path,
    value: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{PREFIX}model.layers.2.mlp.up_proj.lora_B.weight"][3, 1] = value

    edit_weights(adapter, spoil)
    store = WeightStore()
    monkeypatch.setattr("omniserve.models.loading.DecoderModel", None)
    with pytest.raises(CheckpointError, match="up_proj of layer 2 has values that are not finite"):
        load_adapter(family[0], adapter, store)


# Adapters made on the spot


def test_the_commands_make_one_and_describe_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base", tmp_path / "adapter"
    assert main(["model", "new", str(base), "--preset", "tiny", "--dtype", "float16"]) == 0
    words = ["model", "adapter", str(base), str(out), "--rank", "5", "--targets", "q_proj,up_proj"]
    assert main(words) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert main(["model", "info", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranks"] == [5] and told["alpha"] == 10 and told["num_layers"] == 3
    assert told["targets"] == ["q_proj", "up_proj"] and told["base_hint"] == str(base)
    summary = inspect_adapter(out, base)
    assert told["num_parameters"] == summary.files.num_parameters == 3 * 5 * (64 + 64 + 64 + 192)
    assert {pair.up.dtype for pair in summary.files.pairs.values()} == {"F16"}
    assert main(["model", "info", str(out)]) == 0
    assert "LoRA adapter" in capsys.readouterr().out
    assert main(words) != 0, "what is there was replaced unasked"
    assert main([*words, "--force"]) == 0


def test_one_that_is_made_is_of_its_seed(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", arch="llama", preset="tiny")
    one, again, other = (
        (write_adapter(base, tmp_path / name, seed=seed) / WEIGHTS).read_bytes()
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert one == again != other and len(one) == len(other)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", arch="llama", preset="tiny")
    experts = write_checkpoint(tmp_path / "experts", arch="mixtral", preset="tiny")
    for source, options, problem in (
        (base, {"rank": 0}, "rank 0: use 1 to"),
        (base, {"seed": -1}, "seed -1"),
        (base, {"targets": ["lm_head"]}, "targets: 'lm_head': use some of"),
        (base, {"targets": []}, "targets: nothing"),
        (experts, {"targets": ["up_proj"]}, "has none of up_proj in dense layers"),
        (tmp_path / "nothing", {}, "no such directory"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            write_adapter(source, tmp_path / "adapter", **options)
    with pytest.raises(CheckpointError, match="is the base itself"):
        write_adapter(base, base, force=True)
    assert not (tmp_path / "adapter").exists()
