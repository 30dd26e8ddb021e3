"""What we hand to FlashInfer, against naive attention: a stand-in takes its place on the CPU."""

import sys
from dataclasses import replace

import flashinfer_stand_in
import numpy as np
import pytest
import torch
from test_devices_attention import TOLERANCE, PagedCase

from omniserve.devices.attention import AttentionBatch, CapturableAttention
from omniserve.devices.flashinfer import FlashInferAttention

DTYPE = torch.float16
WINDOWS = [None, 20]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_stand_in)
    monkeypatch.setattr(torch, "Event", flashinfer_stand_in.Event)


def open_attention(case: PagedCase, window: int | None) -> FlashInferAttention:
    return FlashInferAttention(case.cache, [window], case.num_heads)


def without_nan(case: PagedCase) -> PagedCase:
    """FlashInfer is not asked to be right where slots past a context hold NaN."""
    case.cache.nan_to_num_(0)
    return case


@pytest.mark.parametrize("window", WINDOWS)
def test_decodes_and_chunks(window: int | None) -> None:
    case = without_nan(PagedCase(DTYPE, [1, 16, 17, 100], [(0, 30), (24, 40), (31, 2)]))
    error = (case.run(open_attention(case, window)) - case.expected(window)).abs().max()
    assert error < TOLERANCE[DTYPE]


@pytest.mark.parametrize("window", WINDOWS)
def test_static_decodes_see_what_they_are_filled_with(window: int | None) -> None:
    """Padded to eight rows; the last block of the cache is the scratch block."""
    case = without_nan(PagedCase(DTYPE, [1, 16, 17, 100], []))
    attention = open_attention(case, window)
    assert isinstance(attention, CapturableAttention)
    scratch = case.cache.shape[1] - 1
    width = case.batch.decode_block_tables.shape[1]
    padding = AttentionBatch.empty(width).padded(8, scratch)
    decodes = attention.static_decodes(padding, attention.context_size(case.batch))
    q, k, v = (torch.cat([x, torch.ones_like(x)]) for x in (case.q, case.k, case.v))
    before = case.cache.clone()
    decodes.run(0, q, k, v)
    changed = (case.cache != before).flatten(2).any(dim=2)[0].nonzero().flatten()
    assert changed.tolist() == [scratch]

    decodes.fill(case.batch.padded(8, scratch))
    out = decodes.run(0, q, k, v)[:4].double()
    assert (out - case.expected(window)).abs().max() < TOLERANCE[DTYPE]
    # Fewer rows after more: nothing of the others is left.
    fewer = replace(
        case.batch,
        decode_block_tables=case.batch.decode_block_tables[2:],
        decode_context_lens=case.batch.decode_context_lens[2:],
        row_block_ids=case.batch.row_block_ids[2:],
        row_offsets=case.batch.row_offsets[2:],
    )
    decodes.fill(fewer.padded(8, scratch))
    rows = torch.from_numpy(np.array([2, 3, 4, 4, 4, 4, 4, 4]))
    out = decodes.run(0, q[rows], k[rows], v[rows])[:2].double()
    assert (out - case.expected(window)[2:]).abs().max() < TOLERANCE[DTYPE]
