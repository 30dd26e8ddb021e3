"""Synthetic checkpoints as files: they load everywhere, are the same every time, or not there."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omniserve.checkpoint import inspect_checkpoint
from omniserve.cli import main
from omniserve.errors import CheckpointError
from omniserve.synthetic import commands
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.info import model_report
from omniserve.synthetic.layout import TensorSpec, tensor_specs
from omniserve.synthetic.model_config import model_config
from omniserve.synthetic.presets import ARCHITECTURES, PRESETS, shape_of
from omniserve.synthetic.weights import write_weights

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def make(directory: Path, arch: str = "llama", **options: Any) -> Path:
    return write_checkpoint(directory, arch=arch, **({"preset": "tiny"} | options))


def command(*words: str) -> int:
    """Runs `omniserve model ...` and gives its exit code."""
    return main(["model", *words])


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    return loaded[0], loaded[1]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "overrides",
    [{}, {"tie_word_embeddings": True}, {"rope_parameters": LLAMA3_ROPE}],
    ids=["plain", "tied", "llama3-rope"],
)
def test_transformers_loads_every_tensor(
    tmp_path: Path, arch: str, overrides: dict[str, Any]
) -> None:
    path = make(tmp_path / "model", arch, overrides=overrides)
    model, info = load(path)
    assert not any(info.values()), info
    assert type(model).__name__ == ARCHITECTURES[arch]
    report = model_report(path)
    assert report.num_parameters == sum(tensor.numel() for tensor in model.parameters())
    assert report.max_positions >= 2048
    cache = model(torch.tensor([[5, 6, 7]])).past_key_values
    kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert report.kv_bytes_per_token == kv_bytes // 3


def test_peculiarities_of_the_architectures(tmp_path: Path) -> None:
    tensors = {
        arch: inspect_checkpoint(make(tmp_path / arch, arch)).tensors
        for arch in ("qwen2", "qwen3", "mixtral", "qwen3_moe")
    }
    attention = "model.layers.0.self_attn."
    weights = load_file(tmp_path / "qwen2" / "model.safetensors")
    assert all(weights[f"{attention}{part}_proj.bias"].abs().max() > 0.1 for part in "qkv")
    assert f"{attention}q_norm.weight" in tensors["qwen3"]
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in tensors["mixtral"]
    assert "model.layers.0.mlp.experts.7.down_proj.weight" in tensors["qwen3_moe"]
    windowed = make(tmp_path / "windowed", "mistral", overrides={"sliding_window": 64})
    assert load(windowed)[0].config.sliding_window == 64


def test_shape_of_the_100m_preset() -> None:
    shape = shape_of("100m", "qwen3")
    assert (shape.num_layers, shape.hidden_size, shape.intermediate_size) == (8, 1024, 3072)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (16, 8, 64)
    assert shape.max_positions >= 16_384


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("preset", "low", "high"), [("small", 14e6, 20e6), ("100m", 95e6, 125e6), ("8b", 7e9, 9e9)]
)
def test_presets_are_as_large_as_their_names(
    arch: str, preset: str, low: float, high: float
) -> None:
    config = model_config(arch, shape_of(preset, arch), "bfloat16")
    assert low < sum(spec.num_elements for spec in tensor_specs(config)) < high


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("preset", PRESETS)
def test_heads_and_experts_divide(arch: str, preset: str) -> None:
    shape = shape_of(preset, arch)
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.head_dim % 2 == 0
    assert shape.num_experts_per_token <= shape.num_experts
    assert (shape.num_experts > 0) == (arch in ("qwen3_moe", "mixtral"))
    # A config of Qwen2 has no head_dim: its heads share out the hidden size.
    assert arch != "qwen2" or shape.num_heads * shape.head_dim == shape.hidden_size


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = contents(make(tmp_path / "first"))
    # Another process, with other hash seeds and another number of threads.
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from omniserve.synthetic.create import write_checkpoint as write; "
            "write(sys.argv[1], arch='llama', preset='tiny')",
            str(tmp_path / "again"),
        ],
        check=True,
        env={"RAYON_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        timeout=240,
    )
    assert contents(tmp_path / "again") == first
    other = contents(make(tmp_path / "other", seed=1))
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_architectures_do_not_share_weights(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    one, other = (
        load_file(make(tmp_path / arch, arch) / "model.safetensors")[name]
        for arch in ("llama", "mistral")
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_are_the_float32_weights_rounded(tmp_path: Path, dtype: str) -> None:
    wide = load_file(make(tmp_path / "wide") / "model.safetensors")
    short = load_file(make(tmp_path / "short", dtype=dtype) / "model.safetensors")
    for name, tensor in wide.items():
        assert torch.equal(short[name], tensor.to(getattr(torch, dtype))), name


def test_tensors_do_not_depend_on_pieces_or_shards(tmp_path: Path) -> None:
    specs = [TensorSpec("large", (1200, 1001), 2.0), TensorSpec("ones", (7,), 0.1, mean=1.0)]
    for name, limit in (("one", 1 << 30), ("many", 1 << 20)):
        (tmp_path / name).mkdir()
        write_weights(tmp_path / name, specs, "float32", "seed", lambda *_: None, limit)
    one = load_file(tmp_path / "one" / "model.safetensors")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) == 2
    for name, tensor in (load_file(shards[0]) | load_file(shards[1])).items():
        assert torch.equal(tensor, one[name])
    assert one["large"].std().item() == pytest.approx(2.0, rel=0.01)
    # Neither rows nor the pieces they were drawn in repeat one another.
    assert len(one["large"].unique()) > 0.9 * one["large"].numel()


def test_tokenizer_round_trip_and_chat(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "It's 2024: the QUEUE holds 3 requests.\n\n\tdef run(self): return [1]\ncafé 今日は 🚀"
    for arch in ARCHITECTURES:
        path = make(tmp_path / arch, arch)
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert len(tokenizer) == 512
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer(text).input_ids == raw_tokenizer(path).encode(text).ids
        chat = tokenizer.apply_chat_template(
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert chat == (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert tokenizer(chat).input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


def raw_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path / "tokenizer.json"))


def test_padded_ids_decode_but_are_never_produced(tmp_path: Path) -> None:
    path = make(tmp_path / "model", vocab_size=6000)
    tokenizer, plain = raw_tokenizer(path), raw_tokenizer(make(tmp_path / "plain"))
    words = [tokenizer.decode([token_id]) for token_id in range(512, 6000)]
    assert len(set(words)) == len(words)
    assert all(word.strip() for word in words)
    text = "".join(words)
    assert tokenizer.encode(text).ids == plain.encode(text).ids
    model, info = load(path)
    assert not any(info.values()), info
    logits = model(torch.arange(100, 600)[None]).logits[0]
    assert logits.shape[-1] == 6000
    assert (logits.argmax(-1) >= 512).float().mean() > 0.5


def test_control_tokens_are_hardly_ever_generated(tmp_path: Path) -> None:
    model, _ = load(make(tmp_path / "model"))
    logits = model(torch.randint(4, 512, (1, 2000), generator=torch.manual_seed(0))).logits[0]
    assert (logits.argmax(-1) < 4).sum() == 0


def test_directory_in_use(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    before = contents(path)
    with pytest.raises(CheckpointError, match="not empty"):
        make(path, seed=1)
    assert contents(path) == before
    make(path, seed=1, force=True)
    assert contents(path) != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_force_deletes_nothing_but_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis.txt"):
        make(tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(CheckpointError, match="is a file"):
        make(tmp_path / "home" / "thesis.txt", force=True)


def test_progress_that_is_told_ends_with_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ("new", str(tmp_path / "model"), "--preset", "tiny", "--force")
    monkeypatch.setattr(commands, "_QUIET_S", 3600.0)
    assert command(*new) == 0
    assert "weights" not in capsys.readouterr().err, "soon done"
    monkeypatch.setattr(commands, "_QUIET_S", 0.0)
    assert command(*new) == 0
    lines = [each for each in capsys.readouterr().err.splitlines() if each.startswith("weights:")]
    assert len(lines) > 1 and lines[-1].endswith("(100%)") and "(100%)" not in lines[0]


def test_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert inspect_checkpoint(make(tmp_path / "model"))


@pytest.mark.parametrize("existing", [False, True])
def test_failure_half_way_leaves_everything_as_it_was(tmp_path: Path, existing: bool) -> None:
    before = contents(make(tmp_path / "model")) if existing else {}

    def fill_the_disk(written: int, total: int) -> None:
        if written > total // 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        make(tmp_path / "model", seed=1, force=True, progress=fill_the_disk)
    assert [entry.name for entry in tmp_path.iterdir()] == (["model"] if existing else [])
    if existing:
        assert contents(tmp_path / "model") == before


def test_more_than_the_disk_holds(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 20_000}
    with pytest.raises(CheckpointError, match="no space for .* GB needed"):
        make(tmp_path / "model", arch="llama", preset="8b", overrides=layers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "gemma"}, "arch 'gemma': use one of llama, qwen2"),
        ({"preset": "70b"}, "preset '70b': use one of tiny, small"),
        ({"dtype": "int8"}, "dtype 'int8': use one of float32"),
        ({"seed": -1}, "seed -1: use 0 or more"),
        ({"vocab_size": 511}, "vocab_size 511: .* use 512 or more"),
    ],
)
def test_impossible_values(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        make(tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "models" / "demo")
    options = ("--arch", "qwen3", "--preset", "tiny", "--dtype", "float16", "--seed", "3")
    assert command("new", model, *options, "--vocab-size", "600") == 0
    assert command("info", model) == 0
    config = json.loads((tmp_path / "models" / "demo" / "config.json").read_text())
    assert (config["dtype"], config["vocab_size"]) == ("float16", 600)
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    assert lines["KV bytes per token"].strip() == str(3 * 2 * 2 * 32 * 2)
    assert lines["layers"].strip() == "3"
    assert "parameters" in lines


def test_commands_fail_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("info", str(tmp_path)) == 2
    assert command("new", str(tmp_path), "--vocab-size", "7") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 2
    with pytest.raises(SystemExit) as refused:
        command("new", str(tmp_path), "--arch", "gemma")
    assert refused.value.code == 2
