"""What an attention kernel is compiled for."""

from dataclasses import dataclass
from enum import IntEnum

from cpu_attn.element import QUERY_ELEMENTS, Element, require_element
from cpu_attn.kv_layout import require_size


class Products(IntEnum):
    """How numbers are multiplied; sums are float32 always."""

    EXACT = 0
    """Relative error up to 2e-6 against the same keys and values in float64."""
    BFLOAT16 = 1
    """Weights are rounded to bfloat16 before they meet the values: up to 2e-3, and less work."""


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """Everything else (heads, query tokens, block size, window) is given to each run."""

    kv: Element
    io: Element
    """Of queries, new keys and values, and outputs."""
    head_dim: int
    products: Products = Products.EXACT

    def __post_init__(self) -> None:
        """Raises TypeError for fields of other types, ValueError where there is no such kernel."""
        require_element("kv", self.kv)
        require_element("io", self.io, QUERY_ELEMENTS)
        require_size("head_dim", self.head_dim)
        if not isinstance(self.products, Products):
            raise TypeError(
                f"products {self.products!r}: Products.EXACT or Products.BFLOAT16 is needed"
            )
        kinds = {self.kv, self.io}
        if self.products is Products.BFLOAT16 and kinds != {Element.BFLOAT16}:
            raise ValueError(
                f"products BFLOAT16 with a {self.kv.name} cache and {self.io.name} queries: "
                "BFLOAT16 is needed for both"
            )
