"""Fine-tunes for tests and demos: what is copied is the base, bit for bit, and the rest is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omniserve.checkpoint import inspect_checkpoint
from omniserve.cli import main
from omniserve.errors import CheckpointError
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.finetune import CHANGE, write_finetune
from omniserve.synthetic.presets import ARCHITECTURES, DTYPES

EIGHT_LAYERS = {"num_hidden_layers": 8}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def changed_layers(base: Path, finetune: Path) -> set[int]:
    """Whose every tensor differs; a tensor outside of them that differs fails."""
    ours, theirs = tensors(finetune), tensors(base)
    assert list(ours) == list(theirs)
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    layers = {int(name.split(".")[2]) for name in differ}
    of_these = {n for n in ours if n.startswith(tuple(f"model.layers.{i}." for i in layers))}
    assert differ == of_these
    return layers


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_last_layers_differ(tmp_path: Path, arch: str, dtype: str) -> None:
    base = write_checkpoint(
        tmp_path / "base", arch=arch, preset="tiny", dtype=dtype, overrides=EIGHT_LAYERS
    )
    finetune = write_finetune(base, tmp_path / "finetune", seed=1)
    assert changed_layers(base, finetune) == {6, 7}
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (finetune / name).read_bytes() == (base / name).read_bytes()
    inspect_checkpoint(finetune)


def test_the_change_is_small_and_of_the_seed(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", arch="llama", preset="tiny")
    one, again, other = (
        tensors(write_finetune(base, tmp_path / name, seed=seed))
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    before = tensors(base)
    for name in (name for name in before if "layers.2" in name):
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
        change = (one[name] - before[name]).square().mean().sqrt()
        size = before[name].square().mean().sqrt()
        assert 0.5 * CHANGE < change / size < 2 * CHANGE


@pytest.mark.parametrize(
    ("layers_from", "layers"), [(0.0, {0, 1, 2}), (0.4, {1, 2}), (0.75, {2}), (0.999, {2})]
)
def test_the_part_that_stays_is_what_was_asked_for(
    tmp_path: Path, layers_from: float, layers: set[int]
) -> None:
    base = write_checkpoint(tmp_path / "base", arch="qwen2", preset="tiny")
    finetune = write_finetune(base, tmp_path / "finetune", layers_from=layers_from)
    assert changed_layers(base, finetune) == layers


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", arch="llama", preset="tiny")

    def refuse(message: str, directory: Path = tmp_path / "finetune", **options: Any) -> None:
        with pytest.raises(CheckpointError, match=message):
            write_finetune(base, directory, **options)

    refuse("layers_from 1.0: use 0 or more, and less than 1", layers_from=1.0)
    refuse("layers_from nan", layers_from=float("nan"))
    refuse("seed -1", seed=-1)
    refuse("is the base itself", base, force=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    refuse("is not empty", tmp_path / "full")
    refuse("letter.txt", tmp_path / "full", force=True)
    with pytest.raises(CheckpointError, match="no such directory"):
        write_finetune(tmp_path / "nothing", tmp_path / "finetune")
    assert not (tmp_path / "finetune").exists()
    inspect_checkpoint(base)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = tmp_path / "base", tmp_path / "finetune"
    assert main(["model", "new", str(base), "--preset", "tiny"]) == 0
    words = ["model", "finetune", str(base), str(out), "--seed", "3", "--layers-from", "0.5"]
    assert main(words) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert changed_layers(base, out) == {1, 2}
    assert main(words) != 0, "what is there was replaced unasked"
    assert main([*words, "--force", "--json"]) == 0
