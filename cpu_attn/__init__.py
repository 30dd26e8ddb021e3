"""Attention on host cores: numpy and numba only."""

from cpu_attn.bfloat16 import from_bfloat16, to_bfloat16
from cpu_attn.cache_folder import cache_folder
from cpu_attn.element import Element
from cpu_attn.kernel_cache import call_when_compiling
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.kv_layout import KvLayout
from cpu_attn.merge import merge_partials
from cpu_attn.paged_attention import paged_attention
from cpu_attn.quantise import dequantise, quantise
from cpu_attn.thread_team import ThreadTeam
from cpu_attn.warm_up import WarmKernel, WarmUpStep, warm_up

__all__ = [
    "Element",
    "KernelVariant",
    "KvLayout",
    "Products",
    "ThreadTeam",
    "WarmKernel",
    "WarmUpStep",
    "cache_folder",
    "call_when_compiling",
    "dequantise",
    "from_bfloat16",
    "merge_partials",
    "paged_attention",
    "quantise",
    "to_bfloat16",
    "warm_up",
]
