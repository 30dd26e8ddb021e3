"""What the checked attention function is given, looked at once before any address is taken."""

import math
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_attn.element import Element, require_element
from cpu_attn.kernel_task import MAX_GROUP_SIZE, MAX_Q_LEN, NO_WINDOW, TILE_TOKENS
from cpu_attn.kv_layout import KvLayout
from cpu_attn.work_items import visible_tokens

Array = NDArray[Any]

_ELEMENTS = {element.dtype: element for element in Element}
_INT32 = np.dtype(np.int32)
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Arguments of `paged_attention` with defaults filled in; `check` holds them to its contract.

    It also keeps the arrays alive while a kernel knows only their addresses.
    """

    q: Array
    kv_cache: Array
    block_tables: Array
    context_lens: Array
    new_k: Array | None
    new_v: Array | None
    kv_scales: Array | None
    sinks: Array | None
    out: Array
    layout: KvLayout
    io: Element
    scale: float
    window: int | None
    sink_tokens: int

    @property
    def group_size(self) -> int:
        return int(self.q.shape[2]) // self.layout.num_kv_heads

    def check(self) -> None:
        """Raises TypeError for dtypes, ValueError for all else, naming what is wrong."""
        self._check_cache()
        self._check_rows()
        self._check_tables()
        if self.new_k is not None:
            self._check_appended()
        self._check_overlap()

    def _check_cache(self) -> None:
        _contiguous("kv_cache", self.kv_cache, first_axis=1)
        if self.layout.has_scales != (self.kv_scales is not None):
            wanted = "needed with" if self.layout.has_scales else "for no cache but"
            raise ValueError(f"kv_scales: {wanted} int8, the cache is {self.layout.element.name}")
        if self.kv_scales is not None:
            _array("kv_scales", self.kv_scales, _FLOAT32, self.kv_cache.shape[:-1])
            _contiguous("kv_scales", self.kv_scales, first_axis=1)

    def _check_rows(self) -> None:
        num_sequences, q_len, num_heads, head_dim = self.q.shape
        num_kv_heads = self.layout.num_kv_heads
        if head_dim != self.layout.head_dim:
            raise ValueError(f"q: head_dim {head_dim}, the cache has {self.layout.head_dim}")
        if not 1 <= q_len <= MAX_Q_LEN:
            raise ValueError(f"q: q_len {q_len}, 1 to {MAX_Q_LEN} are possible")
        if num_heads % num_kv_heads or not 1 <= num_heads // num_kv_heads <= MAX_GROUP_SIZE:
            raise ValueError(
                f"q: {num_heads} heads over {num_kv_heads} KV heads, "
                f"1 to {MAX_GROUP_SIZE} whole heads for each are needed"
            )
        new_shape = (num_sequences, q_len, num_kv_heads, head_dim)
        dtype = self.q.dtype
        for name, rows, shape in (
            ("q", self.q, self.q.shape),
            ("new_k", self.new_k, new_shape),
            ("new_v", self.new_v, new_shape),
            ("out", self.out, self.q.shape),
        ):
            if rows is not None:
                _array(name, rows, dtype, shape)
                _contiguous(name, rows, first_axis=2)
        if (self.new_k is None) != (self.new_v is None):
            raise ValueError("new_k and new_v: both are needed, or neither")
        _writable("out", self.out)
        if self.sinks is not None:
            _array("sinks", self.sinks, _FLOAT32, (num_heads,))
            _contiguous("sinks", self.sinks, first_axis=0)
            if not np.all(self.sinks < np.inf):
                raise ValueError("sinks: finite logits or -inf are needed, found NaN or inf")

    def _check_tables(self) -> None:
        num_sequences, q_len = self.q.shape[:2]
        _array("context_lens", self.context_lens, _INT32, (num_sequences,))
        _contiguous("context_lens", self.context_lens, first_axis=0)
        _array("block_tables", self.block_tables, _INT32, (num_sequences, None))
        _contiguous("block_tables", self.block_tables, first_axis=1)
        max_blocks = self.block_tables.shape[1]
        longest = max_blocks * self.layout.block_size
        wrong = (self.context_lens < q_len) | (self.context_lens > longest)
        if wrong.any():
            sequence = int(np.argmax(wrong))
            raise ValueError(
                f"context_lens[{sequence}] = {self.context_lens[sequence]}: q_len {q_len} to "
                f"{longest} ({max_blocks} blocks of {self.layout.block_size}) are possible"
            )
        self._check_block_ids()

    def _check_block_ids(self) -> None:
        """Of the blocks that are read: behind a window or the context, entries may be anything."""
        block_size, num_blocks = self.layout.block_size, len(self.kv_cache)
        sink_stops, firsts = visible_tokens(
            self.context_lens,
            q_len=self.q.shape[1],
            window=self.window,
            sink_tokens=self.sink_tokens,
        )
        start = np.arange(self.block_tables.shape[1]) * block_size
        used = (start + block_size > firsts[:, None]) & (start < self.context_lens[:, None])
        # Kernels walk whole tiles.
        used |= start < -(-sink_stops[:, None] // TILE_TOKENS) * TILE_TOKENS
        wrong = used & ((self.block_tables < 0) | (self.block_tables >= num_blocks))
        if wrong.any():
            sequence, column = (int(i) for i in np.unravel_index(np.argmax(wrong), wrong.shape))
            raise ValueError(
                f"block_tables[{sequence}, {column}] = {self.block_tables[sequence, column]}: "
                f"the cache has blocks 0 to {num_blocks - 1}"
            )

    def _check_appended(self) -> None:
        for name, blocks in (("kv_cache", self.kv_cache), ("kv_scales", self.kv_scales)):
            if blocks is not None:
                _writable(name, blocks)
                if len(blocks) > 1 and abs(blocks.strides[0]) < blocks[0].nbytes:
                    raise ValueError(f"{name}: blocks of {blocks[0].nbytes} bytes overlap")
        q_len, block_size = self.q.shape[1], self.layout.block_size
        positions = self.context_lens[:, None] - q_len + np.arange(q_len)
        ids = np.take_along_axis(self.block_tables, positions // block_size, axis=1)
        slots = ids.astype(np.int64) * block_size + positions % block_size
        unique, counts = np.unique(slots, return_counts=True)
        if np.any(counts > 1):
            slot = int(unique[np.argmax(counts > 1)])
            raise ValueError(
                f"block_tables: two sequences append to slot {slot % block_size} of block "
                f"{slot // block_size}, each needs its own"
            )

    def _check_overlap(self) -> None:
        """Threads would read what others write."""
        written = [("out", self.out)]
        if self.new_k is not None:
            written.append(("kv_cache", self.kv_cache))
            if self.kv_scales is not None:
                written.append(("kv_scales", self.kv_scales))
        for target_name, target in written:
            for name in (
                *("q", "new_k", "new_v", "kv_cache", "kv_scales", "block_tables"),
                *("context_lens", "sinks"),
            ):
                other = getattr(self, name)
                if name == target_name or other is None:
                    continue
                if np.shares_memory(target, other):
                    raise ValueError(f"{target_name} lies over {name}: memory of its own is needed")


def element_of(
    name: str,
    array: Any,
    given_name: str,
    given: Element | None,
    allowed: tuple[Element, ...] = tuple(Element),
) -> Element:
    """The element type of an array; int16 may be bfloat16 too where that is said.

    Raises TypeError where there is none, it is not allowed, or `given` is another.
    """
    if given is not None:
        require_element(given_name, given)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: {type(array).__name__}, a numpy array is needed")
    if given is Element.BFLOAT16 and array.dtype == np.int16:
        return given
    element = _ELEMENTS.get(array.dtype)
    if element is None or element not in allowed:
        hint = ""
        if array.dtype == np.int16:
            hint = f"; int16 is taken for bfloat16 with {given_name}=Element.BFLOAT16"
        dtypes = ", ".join(one.dtype_text for one in allowed)
        raise TypeError(f"{name}: dtype {array.dtype}, one of {dtypes} is needed{hint}")
    if given is not None and given is not element:
        raise TypeError(f"{name}: dtype {array.dtype} holds {element.name}, not {given.name}")
    return element


def whole_number(name: str, value: Any, *, at_least: int) -> int:
    """Raises TypeError for anything but an integer, ValueError for one that is too small."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} {value!r}: a whole number is needed") from error
    if number < at_least:
        raise ValueError(f"{name} {number}: at least {at_least} is needed")
    return number


def token_count(name: str, value: Any, *, at_least: int) -> int:
    """As `whole_number`; beyond all contexts one is like another, and kernels count in int64."""
    return min(whole_number(name, value, at_least=at_least), NO_WINDOW)


def softmax_scale(value: Any, head_dim: int) -> float:
    """1 / sqrt(head_dim) for None.

    Raises TypeError for what is no number, ValueError unless it is positive and finite.
    """
    if value is None:
        return float(head_dim**-0.5)
    if not isinstance(value, Real):
        raise TypeError(f"scale {value!r}: a number is needed")
    scale = float(value)
    if not (math.isfinite(scale) and scale > 0.0):
        raise ValueError(f"scale {scale}: a positive finite number is needed")
    return scale


def _array(name: str, array: Any, dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> None:
    """None in a shape is any number."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: {type(array).__name__}, a numpy array is needed")
    if array.dtype != dtype:
        raise TypeError(f"{name}: dtype {array.dtype}, {dtype} is needed")
    same_ndim = array.ndim == len(shape)
    if not same_ndim or any(b not in (a, None) for a, b in zip(array.shape, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape {array.shape}, ({wanted}) is needed")


def _contiguous(name: str, array: Array, *, first_axis: int) -> None:
    """From an axis on, and aligned to its element; strides before that axis are free."""
    if not array.size:
        return
    step = array.itemsize
    for axis in range(array.ndim - 1, first_axis - 1, -1):
        if array.shape[axis] > 1 and array.strides[axis] != step:
            raise ValueError(
                f"{name}: strides {array.strides} of shape {array.shape}, "
                f"dimensions {first_axis} to {array.ndim - 1} must be contiguous"
            )
        step *= array.shape[axis]
    if not array.flags.aligned:
        raise ValueError(f"{name}: its address or strides are no multiple of {array.itemsize}")


def _writable(name: str, array: Array) -> None:
    if not array.flags.writeable:
        raise ValueError(f"{name}: read-only, it is written to")
