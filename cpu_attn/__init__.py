"""Attention on host cores: numpy and numba only."""

from cpu_attn.cache_folder import cache_folder
from cpu_attn.element import Element
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.kv_layout import KvLayout
from cpu_attn.merge import merge_partials
from cpu_attn.paged_attention import paged_attention
from cpu_attn.thread_team import ThreadTeam
from cpu_attn.warm_up import WarmKernel, WarmUpStep, warm_up
from cpu_attn.work_items import WorkPlan, plan_items

__all__ = [
    "Element",
    "KernelVariant",
    "KvLayout",
    "Products",
    "ThreadTeam",
    "WarmKernel",
    "WarmUpStep",
    "WorkPlan",
    "cache_folder",
    "merge_partials",
    "paged_attention",
    "plan_items",
    "warm_up",
]
