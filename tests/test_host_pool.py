"""What the host's KV pool holds, and its memory against the kernel's books."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from host_pool_builders import ELEMENTS, draw_pages, make_layout, make_pool, read_back

from cpu_attn.element import Element
from cpu_attn.host import shared_memory
from cpu_attn.host.kv_arena import consecutive_runs
from cpu_attn.host.pool import HostKvPool


@pytest.fixture
def pool() -> Iterator[HostKvPool]:
    """Eight blocks of 8 KiB."""
    with closing(make_pool()) as pool:
        yield pool


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [4, 1, 0, 7], [6, 7, 0, 1], [5]])
def test_pages_come_out_as_they_went_in(element: Element, order: list[int]) -> None:
    with closing(make_pool(element)) as pool:
        pool.allocate(8)
        others = [block for block in range(8) if block not in order]
        kept = draw_pages(pool, len(others), seed=1)
        pool.copy_in(others, kept)
        pages = draw_pages(pool, len(order))
        pool.copy_in(order, pages)
        out = pool.copy_out(order)
        assert (out.dtype, out.shape) == (pages.dtype, pages.shape)
        np.testing.assert_array_equal(out, read_back(element, pages))
        np.testing.assert_array_equal(pool.copy_out(others), read_back(element, kept))
        np.testing.assert_array_equal(pool.copy_out(order[::-1]), out[:, ::-1])


@pytest.mark.parametrize("element", ELEMENTS)
def test_tokens_lie_where_the_layout_says(element: Element) -> None:
    """Through another mapping of the descriptor, by offsets alone."""
    with closing(make_pool(element)) as pool:
        layout, table = pool.layout, pool.allocate(8)[::-1]
        k, v = draw_pages(pool, 1)[0, 0, :, :, 3]
        pool.append(table, 1, 35, k, v)
        with mmap.mmap(pool.fd, pool.num_bytes) as memory:
            for side, rows in enumerate((k, v)):
                for head, row in enumerate(read_back(element, rows)):
                    start = table[2] * layout.block_bytes + layout.layer_bytes
                    start += side * layout.values_offset + head * layout.page_bytes
                    stored = memory[start + 3 * layout.row_bytes :][: layout.row_bytes]
                    if element is Element.INT8:
                        start = table[2] * layout.block_bytes + layout.layer_bytes
                        start += layout.scales_offset + (side * 2 + head) * 16 * 4 + 3 * 4
                        (scale,) = np.frombuffer(memory[start : start + 4], np.float32)
                        values = np.frombuffer(stored, np.int8) * scale
                    else:
                        values = np.frombuffer(stored, k.dtype)
                    np.testing.assert_array_equal(values, row)


@pytest.mark.parametrize("element", ELEMENTS)
def test_appending_token_by_token_equals_copying_in(element: Element) -> None:
    with closing(make_pool(element)) as pool:
        table = pool.allocate(5)[::-2]
        pages = draw_pages(pool, len(table))
        for layer in range(2):
            for position in range(len(table) * 16):
                block, slot = divmod(position, 16)
                k, v = pages[layer, block, :, :, slot]
                pool.append(table, layer, position, k, v)
                pool.append(table, layer, position, k, v)
        appended = pool.copy_out(table)
        pool.copy_in(table, pages)
        np.testing.assert_array_equal(appended, pool.copy_out(table))


def test_pages_may_be_a_view_of_any_strides(pool: HostKvPool) -> None:
    table = pool.allocate(3)
    wide = draw_pages(pool, 6)
    pool.copy_in(table, wide[:, ::2])
    np.testing.assert_array_equal(pool.copy_out(table), wide[:, ::2])


@pytest.mark.parametrize("element", [Element.FLOAT32, Element.INT8])
def test_nan_in_unwritten_slots_comes_back_as_nan(element: Element) -> None:
    with closing(make_pool(element)) as pool:
        table = pool.allocate(1)
        pages = draw_pages(pool, 1)
        pages[..., 9:, :] = np.nan
        pool.copy_in(table, pages)
        out = pool.copy_out(table)
        assert np.isnan(out[..., 9:, :]).all() and np.isfinite(out[..., :9, :]).all()


def test_blocks_are_copied_in_runs() -> None:
    assert consecutive_runs([3, 4, 5, 9, 1, 2, 8]) == [(0, 3), (3, 4), (4, 6), (6, 7)]
    assert consecutive_runs([5, 4, 4]) == [(0, 1), (1, 2), (2, 3)]
    assert consecutive_runs(list(range(100))) == [(0, 100)]
    assert consecutive_runs([]) == []


def test_another_process_sees_the_pages(pool: HostKvPool) -> None:
    table = pool.allocate(2)
    k, v = np.full((2, 2, 16), [[[1.5]], [[2.5]]], dtype=np.float32)
    pool.append(table, 0, 0, k, v)
    child = (
        "import sys, numpy as np; from cpu_attn.host.shared_memory import SharedMemory;"
        "memory = SharedMemory.attach(int(sys.argv[1]), int(sys.argv[2]));"
        "rows = memory.array(np.float32, (16,)); assert (rows == 1.5).all(); rows[:] = 7"
    )
    arguments = [str(pool.fd), str(pool.num_bytes)]
    subprocess.run([sys.executable, "-c", child, *arguments], pass_fds=[pool.fd], check=True)
    assert (pool.copy_out(table)[0, 0, 0, 0, 0] == 7).all()


def test_one_byte_limit_decides_how_many_blocks_there_are() -> None:
    layout = make_layout()
    for max_bytes, num_blocks in ((8192, 1), (16383, 1), (16384, 2)):
        with closing(HostKvPool(layout, max_bytes)) as pool:
            assert (pool.num_blocks, pool.num_bytes) == (num_blocks, num_blocks * 8192)
            assert os.fstat(pool.fd).st_size == pool.num_bytes


def test_memory_is_taken_as_blocks_are_written_and_given_back_by_trim() -> None:
    """A terabyte of addresses: it could not exist otherwise. 4 MiB blocks suit huge pages too."""
    layout = make_layout(num_layers=64, num_kv_heads=8, head_dim=64)
    assert layout.block_bytes == 4 << 20
    with closing(HostKvPool(layout, 1 << 40)) as pool:
        table = pool.allocate(4)
        assert pool.resident_bytes == 0
        pages = draw_pages(pool, 2)
        pool.copy_in(table[:2], pages)
        assert pool.resident_bytes == 2 * layout.block_bytes
        row = np.zeros((8, 64), dtype=np.float32)
        pool.append(table, 0, 3 * 16, row, row)
        page_bytes = pool.huge_page_bytes or mmap.PAGESIZE
        touched = pool.resident_bytes - 2 * layout.block_bytes
        assert 0 < touched <= 16 * page_bytes
        assert pool.trim() == 0
        pool.free(table[2:])
        assert pool.trim() == touched
        pool.register(1, b"a")
        pool.free(table[:2])
        assert pool.trim() == layout.block_bytes
        assert pool.share([b"a"]) == [1]
        np.testing.assert_array_equal(pool.copy_out([1]), pages[:, 1:2])
        assert pool.resident_bytes == layout.block_bytes


def test_memory_of_some_blocks_is_given_back_for_who_keeps_its_own_books(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_memory, "huge_page_bytes", lambda: None)
    with closing(make_pool()) as pool:
        assert pool.num_granted_blocks == pool.num_blocks == 8
        pool.words[:] = 7
        pool.give_back(2, 5)
        assert pool.resident_bytes == 5 * pool.layout.block_bytes
        pool.words[3] = 9
        assert pool.resident_bytes == 6 * pool.layout.block_bytes
        # Last, as a page that is read is there again.
        assert [int(pool.words[block].max()) for block in range(8)] == [7, 7, 0, 9, 0, 7, 7, 7]
        pool.close()
        with pytest.raises(ValueError, match="the pool is closed"):
            pool.give_back(0, 1)


def test_all_memory_is_given_back_in_pieces_held_or_not() -> None:
    layout = make_layout(Element.BFLOAT16)
    with closing(HostKvPool(layout, 10 << 20)) as pool:
        assert list(pool.discard_in_pieces()) == [], "nothing was touched"
        pool.words[:] = 7
        taken = [pool.resident_bytes for _ in pool.discard_in_pieces()]
        assert len(taken) == 3 and sorted(taken, reverse=True) == taken and taken[-1] == 0
        assert not pool.words.any()


def test_trim_leaves_pages_alone_that_a_held_block_shares() -> None:
    """Blocks of 1 KiB, so that four share a page."""
    changes = {"num_layers": 1, "num_kv_heads": 1, "num_blocks": 4098}
    with closing(make_pool(Element.FLOAT16, **changes)) as pool:
        table = pool.allocate(pool.num_blocks)
        pages = draw_pages(pool, len(table))
        pool.copy_in(table, pages)
        # The last page, half a one, is beside a held block first and then given back whole.
        held = [0, 3, 7, 12, 1030, 4096]
        pool.free([block_id for block_id in table if block_id not in held])
        before = pool.resident_bytes
        assert pool.trim() > 0 or pool.huge_page_bytes
        np.testing.assert_array_equal(pool.copy_out(held), pages[:, held])
        pool.free(held)
        pool.trim()
        assert (before, pool.resident_bytes) == (4100 * 1024, 0)


def test_the_size_is_sealed(pool: HostKvPool) -> None:
    for num_bytes in (0, 2 * pool.num_bytes):
        with pytest.raises(PermissionError):
            os.ftruncate(pool.fd, num_bytes)


def test_a_closed_pool_lets_go_of_memory_and_descriptor() -> None:
    pool = make_pool()
    fd = pool.fd
    # Its own inode: another test's pool may still be mapped in this process.
    inode = _inode_of(fd)
    assert inode in _pool_mappings()
    table = pool.allocate(1)
    pool.close()
    pool.close()
    assert (pool.fd, pool.resident_bytes) == (-1, 0)
    assert _inode_of(fd) != inode
    assert inode not in _pool_mappings()
    with pytest.raises(ValueError, match="the pool is closed"):
        pool.copy_out(table)


def _inode_of(fd: int) -> str:
    """As in the list of mappings; empty where the number is nobody's."""
    try:
        return f" {os.fstat(fd).st_ino} "
    except OSError:
        return ""


def _pool_mappings() -> str:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return "\n".join(line for line in lines if "omniserve-kv" in line)


def test_a_pool_that_was_forgotten_keeps_no_descriptor() -> None:
    pool = make_pool()
    fd, inode = pool.fd, _inode_of(pool.fd)
    del pool
    # Another thread may have been given the number.
    assert _inode_of(fd) != inode


_ROW = np.zeros((2, 16), dtype=np.float32)
_PAGE = np.zeros((2, 1, 2, 2, 16, 16), dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("pool.allocate(-1)", ValueError, "num_blocks -1"),
        ("pool.allocate(1.5)", TypeError, "float"),
        ("pool.free([8])", ValueError, r"block 8 is outside the pool's 0\.\.7"),
        ("pool.free([-1])", ValueError, "block -1 is outside"),
        ("pool.free([2])", ValueError, "block 2 is free"),
        ("pool.free([0, 1, 0])", ValueError, "block 0 is freed 2 times and held 1 times"),
        ("pool.free(['0'])", TypeError, "str"),
        ("pool.register(5, b'x')", ValueError, "block 5 is free"),
        ("pool.register(0, 'x')", TypeError, "block_hash 'x': bytes"),
        ("pool.copy_out([0, 3])", ValueError, "block 3 is free"),
        ("pool.copy_in([3], _PAGE)", ValueError, "block 3 is free"),
        ("pool.copy_in([1], _PAGE)", ValueError, "block 1 is registered, so it is final"),
        ("pool.copy_in([0, 0], _PAGE)", ValueError, "block 0 stands there more than once"),
        ("pool.copy_in([0], _PAGE[0])", ValueError, r"pages: shape .*, \[2, 1, 2, 2, 16, 16\] is"),
        ("pool.copy_in([0], _PAGE.astype('f8'))", TypeError, "pages: float64, an array of float32"),
        ("pool.copy_in([0], _PAGE.tolist())", TypeError, "pages: list, an array of float32"),
        ("pool.append([0], 2, 0, _ROW, _ROW)", ValueError, r"layer 2: 0\.\.1 are allowed"),
        ("pool.append([0], -1, 0, _ROW, _ROW)", ValueError, "layer -1"),
        ("pool.append([0], 0, 16, _ROW, _ROW)", ValueError, "position 16: 1 blocks hold 16 tokens"),
        ("pool.append([0], 0, -1, _ROW, _ROW)", ValueError, "position -1"),
        ("pool.append([3], 0, 0, _ROW, _ROW)", ValueError, "block 3 is free"),
        ("pool.append([1], 0, 0, _ROW, _ROW)", ValueError, "block 1 is registered"),
        ("pool.append([0], 0, 0, _ROW[:1], _ROW)", ValueError, r"k: shape \[1, 16\], \[2, 16\]"),
        ("pool.append([0], 0, 0, _ROW, _ROW.astype('f2'))", TypeError, "v: float16"),
        ("HostKvPool(pool.layout, 8191)", ValueError, "max_bytes 8191: a block of 16 tokens takes"),
        ("HostKvPool(pool.layout, 1 << 70)", ValueError, "from 8192 to"),
        ("HostKvPool(pool.layout, 1e9)", TypeError, "float"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(
    pool: HostKvPool, call: str, error: type[Exception], message: str
) -> None:
    pool.allocate(2)
    pool.register(1, b"a")
    before = pool.copy_out([0, 1])
    scope = {"pool": pool, "HostKvPool": HostKvPool, "_ROW": _ROW + 1, "_PAGE": _PAGE + 1}
    with pytest.raises(error, match=message):
        exec(call, scope)
    pool.check_integrity([[0, 1]])
    np.testing.assert_array_equal(pool.copy_out([0, 1]), before)


def test_more_than_the_machine_can_map_is_named() -> None:
    with pytest.raises(OSError, match=f"max_bytes {1 << 50}: "):
        HostKvPool(make_layout(num_layers=1024), 1 << 50)


def test_words_are_the_memory_of_the_blocks(pool: HostKvPool) -> None:
    block = pool.allocate(3)[2]
    pool.copy_in([block], pages := draw_pages(pool, 1))
    words = pool.words
    assert words.shape == (8, 2, pool.layout.layer_bytes // 8)
    np.testing.assert_array_equal(words[block].view(np.float32), pages[:, 0].reshape(2, -1))
    pool.close()
    assert words[block].any()
    with pytest.raises(ValueError, match="the pool is closed"):
        _ = pool.words
