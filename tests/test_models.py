"""Adapters against the transformers modules that they take apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from weight_builders import load

from omniserve.errors import CheckpointError
from omniserve.models.families import FAMILIES, family_of
from omniserve.models.linear import PackedLinear, can_pack, row_bucket
from omniserve.models.rotary import check_rope
from omniserve.models.weight_store import ModelWeights, WeightStore
from omniserve.synthetic.create import write_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("packed", [False, True])
def test_fused_linears_compute_each_of_their_parts(packed: bool) -> None:
    torch.manual_seed(0)
    parts = [torch.nn.Linear(32, 48), torch.nn.Linear(32, 16, bias=False), torch.nn.Linear(32, 16)]
    x = torch.randn(5, 32)
    with torch.inference_mode():
        expected = torch.cat([part(x) for part in parts], dim=-1)
        fused = ModelWeights(WeightStore(), CPU, packed).linear(parts)
        torch.testing.assert_close(fused(x), expected)
    assert all(part.weight.numel() == 0 for part in parts), "the weights are held twice"


@pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="oneDNN cannot pack bfloat16 here")
def test_packed_bfloat16_is_the_plain_product() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128).bfloat16(), torch.randn(3, 128).bfloat16()
    torch.testing.assert_close(
        PackedLinear(weight, None)(x), F.linear(x, weight), rtol=2e-2, atol=0.1
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_near_the_models_own(tmp_path: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    path = write_checkpoint(tmp_path / "m", arch="qwen3", preset="tiny", dtype="float32")
    model = load(path, WeightStore(), dtype)
    oracle: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    ids = torch.arange(40, 60)
    with torch.inference_mode():
        expected = oracle(ids[None]).logits[0].float()
        residual, rotary = model.embed(ids), model.rotary.at(torch.arange(len(ids)))
        for layer in model.layers:
            q, k, v = layer.pre(residual, rotary)
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            residual = layer.post(residual, out[0].transpose(0, 1).flatten(1))
        actual = model.logits(residual).float()
    assert (actual - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.parametrize("rows", [1, 16, 17, 63, 65, 257, 300])
def test_rows_added_to_fill_a_bucket_are_never_seen(rows: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(24, 32), torch.randn(rows, 32)
    out = PackedLinear(weight, None)(x)
    torch.testing.assert_close(out, F.linear(x, weight))
    assert rows <= row_bucket(rows) <= rows * 1.3


def test_few_sizes_are_computed() -> None:
    assert len({row_bucket(rows) for rows in range(1, 513)}) < 60


def test_unsupported_architectures_are_named_with_those_that_are() -> None:
    class Config:
        architectures = ("GPT2LMHeadModel",)

    with pytest.raises(CheckpointError) as caught:
        family_of(Config())
    assert "GPT2LMHeadModel" in str(caught.value)
    assert all(name in str(caught.value) for name in FAMILIES)


def test_rope_types_without_a_fixed_table_are_refused() -> None:
    class Config:
        rope_parameters = {"rope_type": "longrope"}

    with pytest.raises(CheckpointError, match="longrope"):
        check_rope(Config())
