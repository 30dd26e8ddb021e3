"""Partial attention results put together, against attention over everything at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cpu_attn.merge import merge_partials

Floats = NDArray[np.float64]
MINUS_INFINITY = np.float32(-np.inf)


def attend(logits: Floats, values: Floats) -> tuple[Floats, Floats]:
    """logits [rows, keys] and values [keys, dim] to outputs and log-sum-exp; empty rows are 0."""
    with np.errstate(divide="ignore"):
        lse = np.array([np.logaddexp.reduce(row, initial=-np.inf) for row in logits])
    weights = np.exp(logits - np.where(np.isfinite(lse), lse, 0)[:, None])
    return weights @ values, lse


def partials(
    logits: Floats, values: Floats, cuts: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Results over the keys between consecutive cuts."""
    edges = [0, *cuts, logits.shape[1]]
    parts = [attend(logits[:, a:b], values[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    outs, lses = zip(*parts, strict=True)
    return np.stack(outs).astype(np.float32), np.stack(lses).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 40), max_size=6).map(sorted),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    shift=st.sampled_from([-1000.0, 0.0, 1000.0]),
)
def test_parts_are_as_good_as_the_whole(
    seed: int, rows: int, cuts: list[int], spread: float, shift: float
) -> None:
    """Cuts may coincide or lie at the ends: parts without keys have -inf."""
    rng = np.random.default_rng(seed)
    # Rounded, so that a part's float32 log-sum-exp loses little beside a shift of 1000.
    logits = np.round(rng.normal(size=(rows, 40)) * spread) + shift
    values = rng.normal(size=(40, 17))
    expected, expected_lse = attend(logits, values)
    out, lse = merge_partials(*partials(logits, values, cuts))
    tolerance = 2e-6 if shift == 0.0 else 1e-4
    np.testing.assert_allclose(out, expected, atol=tolerance * 4)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=1e-6)
    assert out.dtype == lse.dtype == np.float32


def test_an_average_of_parts_would_not_do() -> None:
    """The test above can fail."""
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(3, 40)), rng.normal(size=(40, 17))
    outs, _ = partials(logits, values, [5, 30])
    assert np.abs(outs.mean(axis=0) - attend(logits, values)[0]).max() > 0.05


def test_the_output_of_a_part_that_saw_nothing_is_not_looked_at() -> None:
    outs = np.array([[np.nan, np.inf], [1.0, 2.0]], dtype=np.float32)
    out, lse = merge_partials(outs, np.array([MINUS_INFINITY, 3.0], dtype=np.float32))
    np.testing.assert_array_equal(out, [1.0, 2.0])
    assert lse.shape == () and lse == 3.0


def test_parts_that_all_saw_nothing_merge_to_nothing() -> None:
    outs = np.full((3, 2, 4), np.nan, dtype=np.float32)
    out, lse = merge_partials(outs, np.full((3, 2), MINUS_INFINITY))
    np.testing.assert_array_equal(out, np.zeros((2, 4)))
    np.testing.assert_array_equal(lse, [MINUS_INFINITY] * 2)


def test_a_nan_stays_in_its_row() -> None:
    lses = np.array([[np.nan, 0.0], [-np.inf, 0.0]], dtype=np.float32)
    out, lse = merge_partials(np.ones((2, 2, 3), dtype=np.float32), lses)
    assert np.isnan(out[0]).all() and np.isnan(lse[0])
    np.testing.assert_array_equal(out[1], np.ones(3))


def test_arrays_that_may_only_be_read() -> None:
    outs, lses = np.ones((2, 3, 4), dtype=np.float32), np.zeros((2, 3), dtype=np.float32)
    outs.flags.writeable = lses.flags.writeable = False
    out, lse = merge_partials(outs, lses)
    np.testing.assert_array_equal(out, np.ones((3, 4)))
    np.testing.assert_allclose(lse, np.log(2), rtol=1e-6)


def test_any_strides_and_leading_dimensions() -> None:
    rng = np.random.default_rng(1)
    outs = rng.normal(size=(8, 5, 4, 2)).astype(np.float32).transpose(3, 2, 1, 0)
    lses = rng.normal(size=(5, 4, 2)).astype(np.float32).transpose(2, 1, 0)
    out, lse = merge_partials(outs, lses)
    assert out.shape == (4, 5, 8) and lse.shape == (4, 5)
    weights = np.exp(lses.astype(np.float64) - np.logaddexp.reduce(lses, axis=0))
    np.testing.assert_allclose(out, np.einsum("pij,pijd->ijd", weights, outs), atol=1e-6)


@pytest.mark.parametrize(
    ("outs", "lses", "error", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2, np.float32), TypeError, "outs: float64"),
        (np.zeros((2, 3), np.float32), [0.0, 0.0], TypeError, "lses: list"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.float32), ValueError, r"lses \(3,\)"),
        (np.zeros(2, np.float32), np.zeros((), np.float32), ValueError, r"outs \(2,\)"),
        (np.zeros((0, 3), np.float32), np.zeros(0, np.float32), ValueError, "at least 1"),
    ],
)
def test_bad_arrays_are_named(
    outs: object, lses: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        merge_partials(outs, lses)  # type: ignore[arg-type]
