"""Checkpoints that cannot be served are refused by name, before anything loads them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omniserve.checkpoint import SUPPORTED_ARCHITECTURES, inspect_checkpoint
from omniserve.errors import CheckpointError
from omniserve.regular_file import MAX_SMALL_BYTES
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.info import model_report
from omniserve.synthetic.layout import TensorSpec
from omniserve.synthetic.weights import write_weights


@pytest.fixture
def broken(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_config(directory: Path, **changes: object) -> None:
    edit_json(directory / "config.json", lambda config: config.update(changes))


def write_sharded(directory: Path) -> list[str]:
    """Turns the one weights file into several shards of the same tensors, and names them."""
    summary = inspect_checkpoint(directory)
    specs = [TensorSpec(name, info.shape, std=1.0) for name, info in summary.tensors.items()]
    (directory / "model.safetensors").unlink()
    write_weights(directory, specs, "float32", "seed", lambda written, total: None, 200_000)
    return sorted(path.name for path in directory.glob("*.safetensors"))


def expect_refusal(directory: Path, *fragments: str) -> None:
    """The message is one line and holds every fragment; `model info` says the same."""
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(directory)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in (str(directory), *fragments):
        assert fragment in message
    with pytest.raises(CheckpointError) as reported:
        model_report(directory)
    assert str(reported.value) == message


def test_summary_of_a_good_checkpoint(tiny_checkpoint: Path) -> None:
    from safetensors import safe_open

    summary = inspect_checkpoint(tiny_checkpoint)
    assert summary.architecture == "Qwen3ForCausalLM"
    assert summary.config["num_hidden_layers"] == 3
    with safe_open(tiny_checkpoint / "model.safetensors", "numpy") as file:
        expected = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert {name: info.shape for name, info in summary.tensors.items()} == expected
    assert {info.dtype for info in summary.tensors.values()} == {"F32"}


def test_sharded_checkpoint_holds_the_same_tensors(broken: Path) -> None:
    before = {name: info.shape for name, info in inspect_checkpoint(broken).tensors.items()}
    assert len(write_sharded(broken)) > 2
    after = inspect_checkpoint(broken)
    assert {name: info.shape for name, info in after.tensors.items()} == before


def test_missing_directory(tmp_path: Path) -> None:
    expect_refusal(tmp_path / "nowhere", "no such directory")


def test_file_instead_of_directory(tiny_checkpoint: Path) -> None:
    expect_refusal(tiny_checkpoint / "config.json", "not a directory")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file(broken: Path, name: str) -> None:
    (broken / name).unlink()
    expect_refusal(broken, name)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00", "[" * 100_000])
def test_config_that_is_no_json_object(broken: Path, text: str) -> None:
    (broken / "config.json").write_text(text)
    expect_refusal(broken, "config.json", "JSON")


def test_config_that_is_not_text(broken: Path) -> None:
    (broken / "config.json").write_bytes(b"\xff\xfe\x00")
    expect_refusal(broken, "config.json", "JSON")


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM"])
def test_no_architectures(broken: Path, value: object) -> None:
    edit_config(broken, architectures=value)
    expect_refusal(broken, "architectures", *SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize("value", ["GemmaForCausalLM", "LlamaModel", 7])
def test_unsupported_architecture_lists_the_supported(broken: Path, value: object) -> None:
    edit_config(broken, architectures=[value])
    expect_refusal(broken, repr(value), *SUPPORTED_ARCHITECTURES)


def test_quantized_weights(broken: Path) -> None:
    edit_config(broken, quantization_config={"quant_method": "awq"})
    expect_refusal(broken, "quantization_config")


@pytest.mark.parametrize("value", [None, 0, -1, "3", 2.5, True])
def test_impossible_number_of_layers(broken: Path, value: object) -> None:
    edit_config(broken, num_hidden_layers=value)
    expect_refusal(broken, "num_hidden_layers", repr(value))


@pytest.mark.parametrize("key", ["num_key_value_heads", "head_dim", "max_position_embeddings"])
def test_impossible_dimension(broken: Path, key: str) -> None:
    edit_config(broken, **{key: "16"})
    expect_refusal(broken, key, "'16'")


def test_pickled_weights_are_refused_by_name(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    expect_refusal(broken, "pytorch_model.bin", "safetensors")


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 100, 200_000])
def test_truncated_weights(broken: Path, num_bytes: int) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    expect_refusal(broken, "model.safetensors", "truncated")


def test_one_byte_short(broken: Path) -> None:
    path = broken / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    expect_refusal(broken, f"truncated: 1 of {size} bytes")


def header_file(header: str) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 something else entirely, and long enough" * 4,
        header_file("no json"),
        header_file("[]"),
        header_file('{"a": 1}'),
        header_file('{"a": {"shape": [1], "dtype": "F32"}}'),
        header_file('{"a": {"shape": 1, "dtype": "F32", "data_offsets": [0, 0]}}'),
        header_file('{"a": {"shape": [1], "dtype": "F32", "data_offsets": [0, "4"]}}'),
        header_file('{"a": {"shape": [1], "dtype": "F32", "data_offsets": [0]}}'),
        header_file('{"a": {"shape": [1], "dtype": "F32", "data_offsets": [0, 4, 8]}}'),
        header_file('{"a": {"shape": [1], "dtype": "F32", "data_offsets": [0, 0]}}'),
        header_file('{"a": {"shape": [1], "dtype": "F32", "data_offsets": [-4, 0]}}'),
        header_file('{"a": {"shape": [-1], "dtype": "F9", "data_offsets": [4, 0]}}'),
        header_file('{"a": {"shape": [1], "dtype": ["F32"], "data_offsets": [0, 4]}}'),
        header_file('{"a": {"shape": [1], "dtype": "F32", "data_offsets": [0.0, 4.0]}}'),
    ],
)
def test_file_that_is_no_safetensors(broken: Path, content: bytes) -> None:
    (broken / "model.safetensors").write_bytes(content)
    expect_refusal(broken, "model.safetensors")


def test_missing_shard(broken: Path) -> None:
    shard = write_sharded(broken)[1]
    (broken / shard).unlink()
    expect_refusal(broken, shard, "missing")


def test_truncated_shard(broken: Path) -> None:
    shard = write_sharded(broken)[1]
    (broken / shard).write_bytes((broken / shard).read_bytes()[:-10])
    expect_refusal(broken, shard, "truncated")


def test_index_that_names_an_absent_tensor(broken: Path) -> None:
    shard = write_sharded(broken)[0]
    index = broken / "model.safetensors.index.json"
    edit_json(index, lambda content: content["weight_map"].update(ghost=shard))
    expect_refusal(broken, shard, "ghost")


def test_index_that_leaves_the_directory(broken: Path) -> None:
    write_sharded(broken)
    index = broken / "model.safetensors.index.json"
    edit_json(index, lambda content: content["weight_map"].update(ghost="../x.safetensors"))
    expect_refusal(broken, "../x.safetensors")


@pytest.mark.parametrize("shard", ["", 1, None, "x" * 10_000, "a\nb", "/etc/passwd"])
def test_index_that_names_no_file(broken: Path, shard: object) -> None:
    write_sharded(broken)
    (broken / "1").write_text("")
    index = broken / "model.safetensors.index.json"
    edit_json(index, lambda content: content["weight_map"].update(ghost=shard))
    expect_refusal(broken, "is not a plain file name")


def test_a_message_can_be_carried_whatever_names_hold(broken: Path) -> None:
    shard = write_sharded(broken)[0]
    index = broken / "model.safetensors.index.json"
    edit_json(index, lambda content: content["weight_map"].update({"\ud800": shard}))
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(broken)
    assert str(caught.value).encode()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_is_no_file_is_not_waited_for(broken: Path, name: str) -> None:
    (broken / name).unlink(missing_ok=True)
    os.mkfifo(broken / name)
    expect_refusal(broken, name, "cannot be read")


def test_a_file_without_an_end_is_not_read(broken: Path) -> None:
    path = broken / "config.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    expect_refusal(broken, "config.json", "cannot be read")


def test_a_file_that_is_too_large_is_not_read(broken: Path) -> None:
    with (broken / "config.json").open("r+") as file:
        file.truncate(MAX_SMALL_BYTES + 1)
    expect_refusal(broken, "config.json", "larger than 128 MiB")


def test_a_path_that_no_directory_can_have() -> None:
    with pytest.raises(CheckpointError, match="File name too long"):
        inspect_checkpoint("x" * 5000)


@pytest.mark.parametrize("num_layers", [4, 10**12])
def test_weights_of_too_few_layers(broken: Path, num_layers: int) -> None:
    edit_config(broken, num_hidden_layers=num_layers)
    expect_refusal(broken, "model.layers.3.")


def test_missing_output_head_matters_only_when_untied(tmp_path: Path) -> None:
    model = write_checkpoint(
        tmp_path / "model", arch="llama", preset="tiny", overrides={"tie_word_embeddings": True}
    )
    assert "lm_head.weight" not in inspect_checkpoint(model).tensors
    edit_config(model, tie_word_embeddings=False)
    expect_refusal(model, "lm_head.weight")


def test_vocabulary_of_another_size(broken: Path) -> None:
    edit_config(broken, vocab_size=511)
    expect_refusal(broken, "[512, 64]", "[511, 64]")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ('{"eos_token_id": ', "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"eos_token_id": "</s>"}', "eos_token_id is '</s>'"),
        ('{"eos_token_id": [1, true]}', "eos_token_id is [1, True]"),
        ('{"eos_token_id": [1, -5]}', "eos_token_id is [1, -5]"),
        ('{"eos_token_id": 1%s}' % (30 * "0"), "eos_token_id is 1000"),
    ],
)
def test_broken_generation_config(broken: Path, content: str, fragment: str) -> None:
    (broken / "generation_config.json").write_text(content)
    expect_refusal(broken, "generation_config.json", fragment)
