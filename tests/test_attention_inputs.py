"""Arguments that `paged_attention` cannot work with: each is named, and nothing was written."""

import re
from typing import Any

import numpy as np
import pytest
from attention_cases import Case, Shape, assert_right, make_case
from numpy.lib.stride_tricks import as_strided

from cpu_attn.element import Element
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.kv_layout import KvLayout
from cpu_attn.thread_team import MAX_THREADS

FLOAT = KernelVariant(Element.FLOAT32, Element.FLOAT32, 64)
INT8 = KernelVariant(Element.INT8, Element.FLOAT32, 64)


def case_of(variant: KernelVariant = FLOAT, **shape: Any) -> Case:
    """Two sequences, 2 KV heads with 2 query heads each, appended to; 7 blocks of 16."""
    given: dict[str, Any] = {"context_lens": (40, 10), "appends": True} | shape
    return make_case(variant, Shape(**given))


def refuse(case: Case, error: type[Exception], message: str, **changed: Any) -> None:
    before = case.kv_cache.tobytes()
    with pytest.raises(error, match=message):
        case.run(**changed)
    assert case.kv_cache.tobytes() == before, "refused, yet something was appended"


def misaligned(array: Any) -> Any:
    memory = np.zeros(array.nbytes + 1, dtype=np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("q", np.float64),
        ("q", np.int8),
        ("q", ">f4"),
        ("kv_cache", np.int16),
        ("kv_cache", np.float64),
        ("new_k", np.float16),
        ("new_v", np.uint16),
        ("block_tables", np.int64),
        ("context_lens", np.int64),
        ("kv_scales", np.float64),
        ("sinks", np.float64),
    ],
)
def test_wrong_dtypes(name: str, dtype: Any) -> None:
    case = case_of(INT8 if name == "kv_scales" else FLOAT, has_sinks=True)
    wrong = np.zeros(case.arguments()[name].shape, dtype=dtype)
    refuse(case, TypeError, f"^{name}: dtype", **{name: wrong})


@pytest.mark.parametrize(
    "name", ["q", "kv_cache", "new_k", "new_v", "block_tables", "context_lens", "sinks"]
)
def test_lists_are_no_arrays(name: str) -> None:
    case = case_of(has_sinks=True)
    wrong = case.arguments()[name].tolist()
    refuse(case, (TypeError), f"^{name}: list, a numpy array", **{name: wrong})


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("q", np.s_[0]),
        ("q", np.s_[:, :, :3]),
        ("q", np.s_[:, :, :, :32]),
        ("q", np.s_[:1]),
        ("kv_cache", np.s_[0]),
        ("kv_cache", np.s_[:, :1]),
        ("kv_cache", np.s_[:, :, :, :15]),
        ("kv_cache", np.s_[:, :, :, :, :60]),
        ("kv_cache", np.s_[:, :, :0]),
        ("kv_scales", np.s_[:3]),
        ("new_k", np.s_[:1]),
        ("new_v", np.s_[:, :, :1]),
        ("block_tables", np.s_[:1]),
        ("block_tables", np.s_[0]),
        ("context_lens", np.s_[:1]),
        ("sinks", np.s_[:2]),
        ("out", np.s_[:, :, :2]),
    ],
)
def test_wrong_shapes(name: str, index: Any) -> None:
    case = case_of(INT8 if name == "kv_scales" else FLOAT, has_sinks=True)
    given = case.arguments() | {"out": np.zeros_like(case.q)}
    wrong = np.ascontiguousarray(given[name][index])
    with pytest.raises(ValueError, match=r"needed|possible|has 64|at least 1"):
        case.run(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("q", lambda a: np.repeat(a, 2, axis=3)[:, :, :, ::2]),
        ("q", lambda a: a[:, :, ::-1]),
        ("kv_cache", lambda a: np.repeat(a, 2, axis=3)[:, :, :, ::2]),
        ("kv_cache", lambda a: a.transpose(0, 2, 1, 3, 4)),
        ("new_k", lambda a: np.repeat(a, 2, axis=2)[:, :, ::2]),
        ("block_tables", lambda a: np.repeat(a, 2, axis=1)[:, ::2]),
        ("context_lens", lambda a: a[::-1]),
        ("kv_scales", lambda a: np.repeat(a, 2, axis=3)[..., ::2]),
    ],
)
def test_strides_that_no_kernel_walks(name: str, view: Any) -> None:
    case = case_of(INT8 if name == "kv_scales" else FLOAT)
    refuse(case, ValueError, f"^{name}: strides", **{name: view(case.arguments()[name])})


@pytest.mark.parametrize("name", ["q", "kv_cache", "new_k", "block_tables", "context_lens"])
def test_misaligned_memory(name: str) -> None:
    case = case_of()
    wrong = misaligned(case.arguments()[name])
    refuse(case, ValueError, f"^{name}: its address", **{name: wrong})


def test_read_only_memory() -> None:
    case = case_of()
    refuse(case, ValueError, "^kv_cache: read-only", kv_cache=read_only(case.kv_cache))
    refuse(case, ValueError, "^out: read-only", out=read_only(np.zeros_like(case.q)))
    case = case_of(INT8)
    refuse(case, ValueError, "^kv_scales: read-only", kv_scales=read_only(case.kv_scales))


@pytest.mark.parametrize("length", [-1, 0, 65, 2**31 - 1])
def test_lengths_beyond_the_table_or_without_a_token(length: int) -> None:
    case = case_of()
    lens = np.array([40, length], dtype=np.int32)
    refuse(case, ValueError, rf"^context_lens\[1\] = {length}: q_len 1 to 64", context_lens=lens)


def test_lengths_below_q_len() -> None:
    case = case_of(q_len=3)
    lens = np.array([2, 40], dtype=np.int32)
    refuse(case, ValueError, r"^context_lens\[0\] = 2: q_len 3 to", context_lens=lens)


@pytest.mark.parametrize("block", [-1, 7, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("column", [0, 2])
def test_tables_that_point_outside_the_cache(block: int, column: int) -> None:
    case = case_of()
    assert len(case.kv_cache) == 7
    case.block_tables[0, column] = block
    message = re.escape(f"block_tables[0, {column}] = {block}: the cache has blocks 0 to 6")
    refuse(case, ValueError, message)


@pytest.mark.parametrize("column", range(13))
def test_tables_of_a_window_with_sinks(column: int) -> None:
    """Blocks 0 to 3 are the sinks' run of 64 tokens, 8 to 12 those that the window reaches."""
    case = case_of(context_lens=(200,), window=20, sink_tokens=1)
    tables = case.block_tables.copy()
    tables[0, column] = 1000
    if 4 <= column < 8:
        out, lse = case.run(block_tables=tables)
        assert_right(case, out, lse)
    else:
        refuse(case, ValueError, rf"block_tables\[0, {column}\] = 1000", block_tables=tables)


def test_two_sequences_that_append_to_one_slot() -> None:
    case = case_of(context_lens=(10, 10))
    case.block_tables[1] = case.block_tables[0]
    refuse(case, ValueError, "two sequences append to slot 9 of block")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": -1.0}, "scale -1.0"),
        ({"scale": float("nan")}, "scale nan"),
        ({"window": 0}, "window 0: at least 1"),
        ({"sink_tokens": -1}, "sink_tokens -1: at least 0"),
        ({"num_threads": 0}, "num_threads 0: at least 1"),
        ({"num_threads": MAX_THREADS + 1}, f"num_threads {MAX_THREADS + 1}"),
        ({"new_v": None}, "new_k and new_v: both"),
        ({"products": Products.BFLOAT16}, "products BFLOAT16 with a FLOAT32 cache"),
        ({"products": 7}, "7 is not a valid Products"),
        ({"scale": np.inf}, "scale inf"),
        ({"kv_scales": np.ones((7, 2, 2, 16), np.float32)}, "kv_scales: for no cache but int8"),
    ],
)
def test_wrong_numbers(changed: dict[str, Any], message: str) -> None:
    refuse(case_of(), ValueError, message, **changed)


@pytest.mark.parametrize("name", ["window", "sink_tokens", "num_threads"])
def test_counts_are_whole(name: str) -> None:
    refuse(case_of(), TypeError, f"{name} 2.0: a whole number", **{name: 2.0})


def test_a_scale_is_a_number() -> None:
    refuse(case_of(), TypeError, "^scale '0.5': a number is needed", scale="0.5")


@pytest.mark.parametrize("name", ["kv_element", "io_element"])
def test_elements_by_name_or_number(name: str) -> None:
    allowed = "Element.FLOAT32, Element.FLOAT16, Element.BFLOAT16, Element.INT8"
    refuse(case_of(), TypeError, f"^{name} 'float32': one of {allowed}", **{name: "float32"})
    refuse(case_of(), TypeError, f"^{name} 0: one of", **{name: 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("float32", Element.FLOAT32, 64), r"^kv 'float32': one of Element.FLOAT32, "),
        ((Element.FLOAT32, "float32", 64), r"^io 'float32': one of "),
        ((0, 0, 64), r"^kv 0: one of "),
        ((Element.FLOAT32, Element.FLOAT32, "64"), r"^head_dim '64': a whole number"),
        ((Element.FLOAT32, Element.FLOAT32, 64.0), r"^head_dim 64.0: a whole number"),
        ((Element.FLOAT32, Element.FLOAT32, 64, 0), r"^products 0: Products.EXACT or "),
    ],
)
def test_variants_of_other_types(fields: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        KernelVariant(*fields)


def test_a_variant_with_int8_queries() -> None:
    with pytest.raises(ValueError, match="Element.INT8: one of Element.FLOAT32, Element.FLOAT16, "):
        KernelVariant(Element.FLOAT32, Element.INT8, 64)


def test_a_layout_of_an_element_s_name() -> None:
    with pytest.raises(TypeError, match="^element 'int8': one of Element.FLOAT32"):
        KvLayout("int8", 1, 2, 64, 16)  # type: ignore[arg-type]


def test_dtypes_that_are_possible_are_told() -> None:
    case = case_of()
    floats = r"one of float32, float16, uint16 \(bfloat16\)"
    for dtype, ending in (
        (np.float64, "is needed$"),
        (np.int8, "is needed$"),
        (np.int16, "is needed; int16 is taken for bfloat16 with io_element=Element.BFLOAT16$"),
    ):
        refuse(case, TypeError, f"^q: dtype .*, {floats} {ending}", q=case.q.astype(dtype))
    cache = case.kv_cache.astype(np.float64)
    refuse(case, TypeError, f"^kv_cache: dtype float64, {floats}, int8 is needed$", kv_cache=cache)
    refuse(case, TypeError, "with kv_element=Element.BFLOAT16$", kv_cache=np.zeros((1,), np.int16))


def test_int8_without_scales() -> None:
    refuse(case_of(INT8), ValueError, "kv_scales: needed with int8", kv_scales=None)


def test_elements_that_the_array_does_not_hold() -> None:
    refuse(case_of(), TypeError, "kv_cache: dtype float32 holds", kv_element=Element.BFLOAT16)
    refuse(case_of(), TypeError, "q: dtype float32 holds", io_element=Element.FLOAT16)


@pytest.mark.parametrize("logit", [np.nan, np.inf])
def test_sinks_that_are_no_logits(logit: float) -> None:
    case = case_of(has_sinks=True)
    assert case.sinks is not None
    case.sinks[1] = logit
    refuse(case, ValueError, "sinks: finite logits")


@pytest.mark.parametrize(("q_len", "group_size"), [(9, 1), (1, 17)])
def test_more_rows_than_a_kernel_has_room_for(q_len: int, group_size: int) -> None:
    case = case_of(q_len=q_len, group_size=group_size)
    refuse(case, ValueError, "^q: ")


def test_memory_that_is_read_and_written_at_once() -> None:
    case = case_of()
    refuse(case, ValueError, "out lies over q", out=case.q)
    rows = case.kv_cache.reshape(-1)[: case.q.size].reshape(case.q.shape)
    refuse(case, ValueError, "out lies over kv_cache", out=rows)
    refuse(case, ValueError, "kv_cache lies over new_k", new_k=rows[:, :, :2])


def test_blocks_that_lie_over_each_other() -> None:
    case = case_of()
    same = as_strided(case.kv_cache, strides=(0, *case.kv_cache.strides[1:]))
    refuse(case, ValueError, "kv_cache: blocks", kv_cache=same)


def test_bfloat16_products_of_other_queries() -> None:
    """Rounding float32 queries would cost more than what BFLOAT16 products promise."""
    case = case_of(KernelVariant(Element.BFLOAT16, Element.FLOAT32, 64))
    refuse(case, ValueError, "products BFLOAT16 with a", products=Products.BFLOAT16)
