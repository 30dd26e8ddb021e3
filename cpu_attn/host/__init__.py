"""Attention in a process of its own: its KV pool, its rings, its workers and who watches them."""

from cpu_attn.host.attention import HostAttention, HostCounters
from cpu_attn.host.block_allocator import PoolFull, PoolIntegrityError
from cpu_attn.host.books import HostResults
from cpu_attn.host.descriptor import HostStatus
from cpu_attn.host.errors import HostAttentionDown, HostAttentionError
from cpu_attn.host.pool import HostKvPool
from cpu_attn.host.settings import HostModel, HostSettings, PoolMemory
from cpu_attn.host.slots import SlotArrays

__all__ = [
    "HostAttention",
    "HostAttentionDown",
    "HostAttentionError",
    "HostCounters",
    "HostKvPool",
    "HostModel",
    "HostResults",
    "HostSettings",
    "HostStatus",
    "PoolFull",
    "PoolIntegrityError",
    "PoolMemory",
    "SlotArrays",
]
