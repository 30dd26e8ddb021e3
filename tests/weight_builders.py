"""Builders for models that share weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from omniserve.models.decoder import DecoderModel
from omniserve.models.linear import can_pack
from omniserve.models.loading import load_config, open_model, read_model
from omniserve.models.row_ops import TorchRowOps
from omniserve.models.weight_store import ModelWeights, WeightStore
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.finetune import write_finetune

CPU = torch.device("cpu")


def load(
    path: Path,
    store: WeightStore,
    dtype: torch.dtype = torch.float32,
    max_model_len: int = 64,
    adapter: Path | None = None,
) -> DecoderModel:
    weights = ModelWeights(store, CPU, can_pack(CPU, dtype))
    opened = open_model(path, load_config(path), adapter)
    return read_model(opened, weights, dtype, max_model_len, TorchRowOps())


def write_family(
    directory: Path, arch: str, num_finetunes: int = 2, layers_from: float = 0.75, **options: Any
) -> list[Path]:
    """A base and its fine-tunes."""
    options = {"preset": "tiny", "overrides": {"num_hidden_layers": 4}} | options
    base = write_checkpoint(directory / "base", arch=arch, **options)
    finetunes = [
        write_finetune(base, directory / f"finetune-{seed}", layers_from=layers_from, seed=seed)
        for seed in range(1, num_finetunes + 1)
    ]
    return [base, *finetunes]


def last_logits(model: DecoderModel, token_ids: list[int]) -> torch.Tensor:
    """Logits [len(token_ids), vocab_size] of a prompt, with attention as it is defined."""
    with torch.inference_mode():
        positions = torch.arange(len(token_ids))
        residual, rotary = model.embed(torch.tensor(token_ids)), model.rotary.at(positions)
        for index, layer in enumerate(model.layers):
            deltas = model.deltas_of(index)
            q, k, v = (x.transpose(0, 1)[None] for x in layer.pre(residual, rotary, deltas))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )
            residual = layer.post(residual, out[0].transpose(0, 1).flatten(1), deltas)
        return model.logits(residual)


_RESIDENT = '''
import gc, sys
from pathlib import Path
import torch
from weight_builders import load
from omniserve.models.weight_store import ModelWeights, WeightStore

def resident_bytes():
    """Of what was allocated and of checkpoints; files of code come and go as the kernel likes."""
    gc.collect()
    num_bytes, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *others = line.split(maxsplit=5)
        if not first.endswith(":"):
            path = others[4] if len(others) == 5 else ""
            counts = not path.startswith("/") or path.endswith(".safetensors")
        elif counts and first == "Rss:":
            num_bytes += 1024 * int(others[0])
    return num_bytes

shared = WeightStore()
dtype = getattr(torch, sys.argv[2])
load(Path(sys.argv[3]), WeightStore(), dtype)  # What is made on first use is made.
before, models = resident_bytes(), []
for path in sys.argv[3:]:
    models.append(load(Path(path), shared if sys.argv[1] == "shared" else WeightStore(), dtype))
    print(resident_bytes() - before, flush=True)
while models:
    models.pop()
    print(resident_bytes() - before, flush=True)
'''


def resident_after_each(paths: list[Path], dtype: str, is_shared: bool) -> list[int]:
    """Bytes of resident memory that a process of its own holds more after it loaded the first,
    the second ... and after it dropped the last, the one before ...
    """
    how = "shared" if is_shared else "apart"
    # Freed memory goes back to the system, or it would be counted after models are gone.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(
        [sys.executable, "-c", _RESIDENT, how, dtype, *map(str, paths)],
        env=_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [int(line) for line in result.stdout.split()]


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))}
