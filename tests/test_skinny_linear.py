"""Linear layers of few rows against exact products, and when they are left to oneDNN."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn import skinny_linear as kernel
from omniserve.models import skinny_linear
from omniserve.models.linear import PackedLinear, SkinnyLinear, can_pack, packed_linear
from omniserve.models.packed_layout import lies_in_blocks, packed_bits

pytestmark = pytest.mark.skipif(
    not (kernel.can_run() and can_pack(torch.device("cpu"), torch.bfloat16)),
    reason="no AVX512-BF16 or no packed weights here",
)

ROWS = [*range(1, 21), 24, 25, 31, 48, 63, 64]
# One pair; part of a chunk of 64 pairs; whole chunks; one pair more than whole chunks.
SHAPES = [(64, 2), (64, 100), (192, 256), (320, 386)]


@pytest.fixture(params=[1, 2], autouse=True)
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_blocks(weight: NDArray[np.uint16], outputs: int = 64) -> NDArray[np.uint16]:
    """weight [N, K] as [N / outputs, K / 2, outputs, 2], flat."""
    num_outputs, num_inputs = weight.shape
    blocks = weight.reshape(num_outputs // outputs, outputs, num_inputs // 2, 2)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).reshape(-1)


def bits(x: Tensor) -> NDArray[np.uint16]:
    return x.view(torch.uint16).numpy()


def run_kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The kernel itself, over a weight that is packed here."""
    packed = in_blocks(bits(weight))
    out = torch.full((x.shape[0], weight.shape[0] + 1), torch.nan, dtype=torch.bfloat16)
    task = np.zeros(kernel.NUM_FIELDS, dtype=np.int64)
    task[kernel.NUM_BLOCKS] = weight.shape[0] // 64
    task[kernel.NUM_PAIRS] = weight.shape[1] // 2
    task[kernel.WEIGHTS] = packed.ctypes.data
    task[kernel.BIAS] = bias.data_ptr()
    task[kernel.NUM_ROWS] = x.shape[0]
    task[kernel.X], task[kernel.X_STRIDE] = x.data_ptr(), 2 * x.stride(0)
    task[kernel.OUT], task[kernel.OUT_STRIDE] = out.data_ptr(), 2 * out.stride(0)
    callback = kernel.skinny_linear_kernel()
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(callback.address)(task.ctypes.data)
    assert out[:, -1].isnan().all(), "written past the end of a row"
    return out[:, :-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_small_integers_are_exact(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    num_outputs, num_inputs = shape
    weight = torch.randint(-9, 10, shape, generator=generator)
    bias = torch.randint(-99, 100, (num_outputs,), generator=generator)
    for rows in ROWS:
        x = torch.randint(-9, 10, (rows, num_inputs), generator=generator)
        expected = (x @ weight.T + bias).bfloat16()
        actual = run_kernel(x.bfloat16(), weight.bfloat16(), bias.float())
        assert torch.equal(actual, expected), rows


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(128, 64), (192, 416), (1024, 1024)])
def test_a_layer_is_as_exact_as_float32_sums(shape: tuple[int, int], with_bias: bool) -> None:
    torch.manual_seed(1)
    num_outputs, num_inputs = shape
    weight = torch.randn(shape).bfloat16()
    bias = torch.randn(num_outputs).bfloat16() if with_bias else None
    layer = packed_linear(weight, bias)
    assert isinstance(layer, SkinnyLinear)
    w, b = weight.double(), torch.zeros(num_outputs) if bias is None else bias.double()
    for rows in ROWS:
        wide = torch.randn(rows, num_inputs + 64).bfloat16()
        x = wide[:, 32:-32]
        expected = x.double() @ w.T + b
        # Each of num_inputs sums rounds to 24 bits, of at most the sum of all sizes; the result
        # to the 8 bits of bfloat16.
        size = x.double().abs() @ w.T.abs() + b.abs()
        bound = (num_inputs + 1) * 2.0**-24 * size * 1.01 + expected.abs() * 2.0**-8
        assert ((layer(x).double() - expected).abs() <= bound).all(), rows
        assert torch.equal(layer(x.contiguous()), layer(x)), rows


def test_a_row_gives_the_same_bits_beside_any_others() -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(512, 320).bfloat16(), torch.randn(64, 320).bfloat16()
    layer = packed_linear(weight, None)
    alone = torch.cat([layer(x[row : row + 1]) for row in range(64)])
    for rows in ROWS:
        assert torch.equal(layer(x[:rows]), alone[:rows]), rows


def test_other_inputs_are_left_to_onednn() -> None:
    weight, bias = torch.randn(128, 64).bfloat16(), torch.randn(128).bfloat16()
    product = skinny_linear.skinny_product(weight, PackedLinear(weight, bias).packed_weight, bias)
    assert product is not None
    few = torch.randn(5, 64).bfloat16()
    many = torch.randn(kernel.MAX_ROWS + 1, 64).bfloat16()
    assert product.takes(few) and product.takes(many[:-1])
    others = [many, few[:0], few.T.contiguous().T]
    assert not any(product.takes(x) for x in [*others, few.float(), few[:, :32]])
    layer, onednn = packed_linear(weight, bias), PackedLinear(weight, bias)
    for x in (many, few.T.contiguous().T):
        assert torch.equal(layer(x), onednn(x))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((96, 64), torch.bfloat16), ((128, 65), torch.bfloat16), ((128, 64), torch.float32)],
)
def test_other_weights_are_left_to_onednn(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert isinstance(packed_linear(torch.randn(shape, dtype=dtype), None), PackedLinear)


def test_without_the_instructions_onednn_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(128, 64).bfloat16()
    assert isinstance(packed_linear(weight, None), SkinnyLinear)
    monkeypatch.setattr(kernel, "can_run", lambda: False)
    assert isinstance(packed_linear(weight, None), PackedLinear)


def test_a_weight_whose_address_torch_does_not_tell_is_left_alone() -> None:
    weight = torch.randn(128, 64).bfloat16()
    assert skinny_linear.skinny_product(weight, weight, None) is None


def test_memory_of_a_packed_weight_is_read_where_it_lies() -> None:
    weight = torch.randn(192, 160).bfloat16()
    packed = PackedLinear(weight, None).packed_weight
    assert np.array_equal(packed_bits(packed), in_blocks(bits(weight)))


def test_only_the_layout_that_the_kernel_reads_is_taken() -> None:
    weight = bits(torch.randn(192, 128).bfloat16())
    packed = in_blocks(weight)
    assert lies_in_blocks(packed, weight)
    swapped = packed.reshape(-1, 2)[:, ::-1].reshape(-1)
    two_blocks = packed.reshape(3, -1)[[1, 0, 2]].reshape(-1)
    last = packed.copy()
    last[-1] ^= 1
    wrong = {
        "as it was": weight.reshape(-1),
        "blocks of 32": in_blocks(weight, 32),
        "pairs swapped": swapped,
        "blocks swapped": two_blocks,
        "the last number": last,
        "padded": np.append(packed, packed[:64]),
        "cut": packed[:-64],
    }
    assert [name for name, memory in wrong.items() if lies_in_blocks(memory, weight)] == []


@pytest.mark.parametrize("shape", [(128, 0), (128, 64), (96, 64), (128, 63)])
def test_weights_that_tell_no_layout_are_not_taken(shape: tuple[int, int]) -> None:
    weight = np.ones(shape, dtype=np.uint16)
    assert not lies_in_blocks(weight.reshape(-1), weight)
