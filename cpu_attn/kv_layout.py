"""Where keys and values lie in a paged cache, in bytes."""

from dataclasses import dataclass
from numbers import Integral

from cpu_attn.element import Element, require_element

_ALIGNMENT = 64


def require_size(name: str, size: int) -> None:
    """Of heads and blocks: raises ValueError unless it is a multiple of 16 up to 256.

    TypeError where it is no whole number.
    """
    if not isinstance(size, Integral):
        raise TypeError(f"{name} {size!r}: a whole number is needed")
    if size % 16 or not 16 <= size <= 256:
        raise ValueError(f"{name} {size}: a multiple of 16 in 16..256 is needed")


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Of one layer a block holds [2 (keys, values), num_kv_heads, block_size, head_dim].

    INT8 is followed by one float32 scale a token and head: [2, num_kv_heads, block_size]. The
    layers of a block lie one after the other, so a block is one run of memory.
    """

    element: Element
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int

    def __post_init__(self) -> None:
        """Raises TypeError for other types, ValueError where no kernel can read such a cache."""
        require_element("element", self.element)
        if self.num_layers < 1 or self.num_kv_heads < 1:
            raise ValueError(
                f"num_layers {self.num_layers}, num_kv_heads {self.num_kv_heads}: at least 1 each"
            )
        require_size("head_dim", self.head_dim)
        require_size("block_size", self.block_size)

    @property
    def has_scales(self) -> bool:
        return self.element is Element.INT8

    @property
    def row_bytes(self) -> int:
        """Keys of one token in one head."""
        return self.head_dim * self.element.num_bytes

    @property
    def page_bytes(self) -> int:
        """Keys of one head in one block."""
        return self.block_size * self.row_bytes

    @property
    def values_offset(self) -> int:
        """From the keys of a layer's block to its values."""
        return self.num_kv_heads * self.page_bytes

    @property
    def scales_offset(self) -> int:
        """From the keys of a layer's block to their scales."""
        return 2 * self.values_offset

    @property
    def scales_bytes(self) -> int:
        return 2 * self.num_kv_heads * self.block_size * 4 if self.has_scales else 0

    @property
    def layer_bytes(self) -> int:
        """One layer of one block, a multiple of 64."""
        used = self.scales_offset + self.scales_bytes
        return -(-used // _ALIGNMENT) * _ALIGNMENT

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    @property
    def bytes_per_token(self) -> int:
        """In all layers."""
        return self.block_bytes // self.block_size
