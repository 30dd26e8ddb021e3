"""Compiled row-wise operations against torch's, over dtypes, lengths and numbers of rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import make_engine, make_model_settings, make_request, run_all

from omniserve.devices.cpu_row_ops import CpuRowOps
from omniserve.devices.openmp_team import OpenMpTeam
from omniserve.models.row_ops import TorchRowOps

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)
# One row, more than one thread is worth waking for, and lengths that fill no vector.
SHAPES = [(1, 64), (5, 96), (37, 1024), (3, 40)]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_ops(dtype: torch.dtype) -> CpuRowOps:
    return CpuRowOps(dtype, OpenMpTeam())


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "length"), SHAPES)
def test_norm_and_add_norm(dtype: torch.dtype, rows: int, length: int) -> None:
    ops, reference = make_ops(dtype), TorchRowOps()
    x, delta = normal(rows, length, dtype=dtype), normal(rows, 2 * length, dtype=dtype, seed=1)
    weight = normal(length, dtype=dtype, seed=2)
    # A strided view, as the columns of a fused product are.
    delta = delta[:, :length]
    before = x.clone()
    assert_near(ops.norm(x, weight, 1e-5), reference.norm(x, weight, 1e-5))
    total, normed = ops.add_norm(x, delta, weight, 1e-5)
    expected_total, expected_normed = reference.add_norm(x, delta, weight, 1e-5)
    assert torch.equal(total, expected_total)
    assert_near(normed, expected_normed)
    assert torch.equal(x, before), "the input was overwritten"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("rows", "head_dim"), [(1, 64), (70, 128), (3, 16), (2, 96)])
def test_rotate_heads(dtype: torch.dtype, norms: bool, rows: int, head_dim: int) -> None:
    ops, reference = make_ops(dtype), TorchRowOps()
    fused = normal(rows, 7, head_dim, dtype=dtype)
    weight = normal(5, head_dim, dtype=dtype, seed=1) if norms else None
    angles = torch.rand(rows, 1, head_dim // 2, generator=torch.Generator().manual_seed(3)) * 6
    cos = torch.cat([angles.cos()] * 2, dim=-1).to(dtype)
    signed_sin = torch.cat([-angles.sin(), angles.sin()], dim=-1).to(dtype)
    untouched = fused[:, 5:].clone()
    expected = reference.rotate_heads(fused[:, :5].clone(), weight, 1e-6, (cos, signed_sin))
    actual = ops.rotate_heads(fused[:, :5], weight, 1e-6, (cos, signed_sin))
    assert_near(actual, expected)
    assert torch.equal(fused[:, 5:], untouched), "heads that are not rotated were"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "length"), SHAPES)
def test_gated_silu(dtype: torch.dtype, rows: int, length: int) -> None:
    gate_up = normal(rows, 2 * length, dtype=dtype) * 8
    assert_near(make_ops(dtype).gated_silu(gate_up), TorchRowOps().gated_silu(gate_up))


def test_extreme_gates_neither_overflow_nor_lose_their_sign() -> None:
    gates = torch.tensor([-1e30, -200.0, -90.0, -1e-20, 0.0, 1e-20, 90.0, 1e30])
    gate_up = torch.cat([gates.repeat(4), torch.ones(32)])[None]
    torch.testing.assert_close(
        make_ops(torch.float32).gated_silu(gate_up), TorchRowOps().gated_silu(gate_up)
    )


def test_a_loaded_model_uses_them(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever fall-back there is, none is taken for a model of ordinary shape."""
    called = set()
    for name in ("norm", "add_norm", "rotate_heads", "gated_silu"):
        original = getattr(CpuRowOps, name)

        def spy(self: CpuRowOps, *args: Any, name: str = name, original: Any = original) -> Any:
            called.add(name)
            return original(self, *args)

        monkeypatch.setattr(CpuRowOps, name, spy)
    engine = make_engine(make_model_settings(tiny_checkpoint))
    run_all(engine, [make_request("a", [5, 6, 7])])
    assert called == {"norm", "add_norm", "rotate_heads", "gated_silu"}


def test_a_nan_stays_in_its_row() -> None:
    x = normal(3, 64, dtype=torch.bfloat16)
    x[1, 5] = float("nan")
    out = make_ops(torch.bfloat16).norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-5)
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()
