"""Torch dtypes as the element types of compiled kernels."""

import torch

from cpu_attn.element import Element

ELEMENTS = {
    torch.float32: Element.FLOAT32,
    torch.float16: Element.FLOAT16,
    torch.bfloat16: Element.BFLOAT16,
}
