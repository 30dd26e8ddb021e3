"""Every attention backend of a CPU device against naive attention."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from naive_attention import attend

from cpu_attn.element import Element
from omniserve.devices.attention import AttentionBatch, Chunk
from omniserve.devices.chunk_attention import ChunkAttention, sdpa_chunk
from omniserve.devices.cpu_attention import CpuAttention, layout_of
from omniserve.devices.openmp_team import OpenMpTeam
from omniserve.devices.sdpa import SdpaAttention
from omniserve.devices.tiled_chunk import TiledChunkAttention

NUM_BLOCKS = 64
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class PagedCase:
    """Sequences with random history in a paged cache, and the rows of one step over them."""

    def __init__(
        self,
        dtype: torch.dtype,
        decode_lens: list[int],
        chunks: list[tuple[int, int]],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_dim: int = 64,
        block_size: int = 16,
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        lengths = decode_lens + [start + count for start, count in chunks]
        rows = [1] * len(decode_lens) + [count for _, count in chunks]
        self.keys = [
            torch.randn(n, num_kv_heads, head_dim, generator=generator).to(dtype) for n in lengths
        ]
        self.values = [torch.randn(k.shape, generator=generator).to(dtype) for k in self.keys]
        self.rows = rows
        total = sum(rows)
        self.q = torch.randn(total, num_heads, head_dim, generator=generator).to(dtype)
        self.k = torch.cat([k[-n:] for k, n in zip(self.keys, rows, strict=True)])
        self.v = torch.cat([v[-n:] for v, n in zip(self.values, rows, strict=True)])
        # What no one wrote is NaN: a backend that lets it through shows it.
        self.cache = torch.full(
            (1, NUM_BLOCKS, 2, num_kv_heads, block_size, head_dim), float("nan"), dtype=dtype
        )
        free = np.random.default_rng(0).permutation(NUM_BLOCKS).astype(np.int32)
        widest = max(-(-n // block_size) for n in lengths)
        tables = np.zeros((len(lengths), widest), dtype=np.int32)
        blocks: list[int] = []
        offsets: list[int] = []
        for index, length in enumerate(lengths):
            count = -(-length // block_size)
            tables[index, :count], free = free[:count], free[count:]
            for position in range(length):
                block, offset = tables[index, position // block_size], position % block_size
                if position < length - rows[index]:
                    self.cache[0, block, 0, :, offset] = self.keys[index][position]
                    self.cache[0, block, 1, :, offset] = self.values[index][position]
                else:
                    blocks.append(block)
                    offsets.append(offset)
        first_row, described = len(decode_lens), []
        for (start, count), table in zip(chunks, tables[len(decode_lens) :], strict=True):
            described.append(
                Chunk(first_row, count, start, table[: -(-(start + count) // block_size)])
            )
            first_row += count
        self.batch = AttentionBatch(
            tables[: len(decode_lens)],
            np.array(decode_lens, dtype=np.int32),
            tuple(described),
            np.array(blocks, dtype=np.int32),
            np.array(offsets, dtype=np.int32),
        )

    def expected(self, window: int | None) -> torch.Tensor:
        outputs, first = [], 0
        for keys, values, count in zip(self.keys, self.values, self.rows, strict=True):
            q = self.q[first : first + count].double().numpy()
            out = attend(q, keys.double().numpy(), values.double().numpy(), self.scale, window)
            outputs.append(torch.from_numpy(out))
            first += count
        return torch.cat(outputs).flatten(1)

    def run(self, backend: Any) -> torch.Tensor:
        plan = backend.plan(self.batch)
        out: torch.Tensor = backend.run(plan, 0, self.q, self.k, self.v)
        return out.double()


def make_backend(name: str, case: PagedCase, window: int | None) -> Any:
    if name == "sdpa":
        return SdpaAttention(case.cache, [window])
    layout = layout_of(case.cache)
    assert layout is not None
    return CpuAttention(case.cache, case.num_heads, [window], layout)


@pytest.mark.parametrize("backend", ["sdpa", "kernel"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("window", [None, 20])
def test_decodes_and_chunks(backend: str, dtype: torch.dtype, window: int | None) -> None:
    case = PagedCase(dtype, [1, 16, 17, 100], [(0, 30), (24, 40), (31, 2)])
    actual = case.run(make_backend(backend, case, window))
    error = (actual - case.expected(window)).abs().max()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "shape",
    [
        {"num_heads": 1, "num_kv_heads": 1, "head_dim": 16},
        {"num_heads": 7, "num_kv_heads": 1, "head_dim": 128},
        {"num_heads": 16, "num_kv_heads": 1, "head_dim": 64},
        {"num_heads": 6, "num_kv_heads": 2, "head_dim": 256, "block_size": 32},
        {"num_heads": 3, "num_kv_heads": 3, "head_dim": 48, "block_size": 64},
    ],
)
def test_decode_kernel_shapes(shape: dict[str, int]) -> None:
    case = PagedCase(torch.float32, [5, 64, 65], [], **shape)
    actual = case.run(make_backend("kernel", case, None))
    assert (actual - case.expected(None)).abs().max() < TOLERANCE[torch.float32]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_long_sequence_is_shared_by_threads() -> None:
    case = PagedCase(torch.float32, [1000, 3], [])
    backend = make_backend("kernel", case, None)
    plan = backend.plan(case.batch)
    for _ in range(2):
        # The second run, another layer's, meets what the first left of its counters.
        actual = backend.run(plan, 0, case.q, case.k, case.v).double()
        assert (actual - case.expected(None)).abs().max() < TOLERANCE[torch.float32]


def test_large_scores_do_not_overflow() -> None:
    case = PagedCase(torch.float32, [90], [])
    case.q *= 300
    actual = case.run(make_backend("kernel", case, None))
    assert (actual - case.expected(None)).abs().max() < 1e-3


@pytest.mark.parametrize("window", [None, 5, 90])
@pytest.mark.parametrize(("start", "num_tokens"), [(0, 1), (0, 150), (70, 130)])
def test_tiled_chunks(start: int, num_tokens: int, window: int | None) -> None:
    """In float32, so that nothing hides behind rounding; more tokens than one tile holds."""
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(num_tokens, 6, 32, generator=generator)
    keys, values = torch.randn(2, 3, start + num_tokens, 32, generator=generator)
    expected = attend(
        q.double().numpy(),
        keys.double().transpose(0, 1).numpy(),
        values.double().transpose(0, 1).numpy(),
        32**-0.5,
        window,
    )
    tiled = TiledChunkAttention(Element.FLOAT32, OpenMpTeam())
    backends: list[ChunkAttention] = [tiled, sdpa_chunk]
    for chunk_attention in backends:
        actual = chunk_attention(q, keys, values, start, window)
        error = (actual.double() - torch.from_numpy(expected).flatten(1)).abs().max()
        assert error < TOLERANCE[torch.float32]


def test_a_nan_among_the_keys_of_a_chunk_shows() -> None:
    """A model that computes nonsense must not look healthy."""
    q, values = torch.randn(40, 2, 32), torch.randn(2, 40, 32)
    keys = torch.randn(2, 40, 32)
    keys[1, 7, 3] = float("nan")
    tiled = TiledChunkAttention(Element.FLOAT32, OpenMpTeam())
    out = tiled(q, keys, values, 0, None).view(40, 2, 32)
    assert out[7:, 1].isnan().all()
    assert not out[:, 0].isnan().any()


@pytest.mark.parametrize("head_dim", [24, 512])
def test_there_is_no_kernel_for_odd_heads(head_dim: int) -> None:
    cache = torch.empty(1, 1, 2, 1, 16, head_dim)
    assert layout_of(cache) is None
