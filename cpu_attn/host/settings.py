"""What a host attention process is told: its models, its cores and how it is watched."""

import math
import os
from dataclasses import dataclass, field
from numbers import Real

from cpu_attn.element import Element
from cpu_attn.kernel_task import MAX_GROUP_SIZE, MAX_Q_LEN, NO_WINDOW
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.kv_layout import KvLayout

MAX_CORES = 128
MAX_CONTEXT_LEN = 1 << 30
"""Lengths are int32 where kernels read them."""


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """The blocks of a HostKvPool as another process finds them: `HostKvPool.memory`."""

    fd: int
    layout: KvLayout
    num_blocks: int
    _file: tuple[int, int] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError where the pool is closed."""
        # A field of a frozen dataclass.
        object.__setattr__(self, "_file", _file_of(self.fd))
        if self._file is None:
            raise ValueError(f"fd {self.fd}: the pool is closed")

    @property
    def is_open(self) -> bool:
        """In the process that made this: whether `fd` is the pool's, not closed or another's."""
        return _file_of(self.fd) == self._file


@dataclass(frozen=True, slots=True)
class HostModel:
    """A model whose decode attention runs on the host."""

    pool: PoolMemory
    num_heads: int
    """Query heads; a multiple of the layout's KV heads, up to 16 times as many."""
    io: Element
    """Of queries, new keys and values, and outputs."""
    max_context_len: int
    """Tokens that the block table of a slot has room for; rounded up to whole blocks."""
    scale: float
    """What scores are multiplied by; positive, mostly 1 / sqrt(head_dim)."""
    max_q_len: int = 1
    windows: tuple[int | None, ...] | None = None
    """One a layer: a query token sees so many last tokens, itself included; None: all."""
    sink_tokens: int = 0
    """First tokens that are seen from outside the window as well."""
    sinks: tuple[tuple[float, ...], ...] | None = None
    """[num_layers][num_heads]: a logit that takes part in each softmax without a value."""
    products: Products = Products.EXACT

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError, naming the field, where no kernel can serve this."""
        layout = self.pool.layout
        group_size, rest = divmod(self.num_heads, layout.num_kv_heads)
        if rest or not 1 <= group_size <= MAX_GROUP_SIZE:
            raise ValueError(
                f"num_heads {self.num_heads}: 1 to {MAX_GROUP_SIZE} times the "
                f"{layout.num_kv_heads} KV heads are needed"
            )
        if not 1 <= self.max_q_len <= MAX_Q_LEN:
            raise ValueError(f"max_q_len {self.max_q_len}: 1..{MAX_Q_LEN} are allowed")
        if not self.max_q_len <= self.max_context_len <= MAX_CONTEXT_LEN:
            raise ValueError(
                f"max_context_len {self.max_context_len}: from max_q_len {self.max_q_len} to "
                f"{MAX_CONTEXT_LEN} are allowed"
            )
        if not isinstance(self.scale, Real):
            raise TypeError(f"scale {self.scale!r}: a number is needed")
        if not (math.isfinite(self.scale) and self.scale > 0.0):
            raise ValueError(f"scale {self.scale}: a positive finite number is needed")
        if self.pool.num_blocks < 1:
            raise ValueError(f"pool.num_blocks {self.pool.num_blocks}: at least 1")
        if not 0 <= self.sink_tokens < NO_WINDOW:
            raise ValueError(f"sink_tokens {self.sink_tokens}: 0..{NO_WINDOW - 1} are allowed")
        self._check_layers()
        # It raises where there is no such kernel.
        _ = self.variant

    def _check_layers(self) -> None:
        num_layers = self.pool.layout.num_layers
        for name in ("windows", "sinks"):
            per_layer = getattr(self, name)
            if per_layer is not None and len(per_layer) != num_layers:
                raise ValueError(f"{name}: {len(per_layer)} layers, the pool has {num_layers}")
        for window in self.windows or ():
            if window is not None and not 1 <= window < NO_WINDOW:
                raise ValueError(f"windows: {window} is not a number of tokens from 1 on")
        for row in self.sinks or ():
            if len(row) != self.num_heads:
                raise ValueError(f"sinks: {len(row)} heads, the model has {self.num_heads}")
            if not all(logit < math.inf for logit in row):
                raise ValueError("sinks: finite logits or -inf are needed, found NaN or inf")

    @property
    def variant(self) -> KernelVariant:
        layout = self.pool.layout
        return KernelVariant(layout.element, self.io, layout.head_dim, self.products)

    @property
    def max_blocks(self) -> int:
        """Entries of a slot's block table."""
        return -(-self.max_context_len // self.pool.layout.block_size)

    def window(self, layer: int) -> int:
        """Tokens that a query token of the layer sees, NO_WINDOW for all."""
        window = self.windows[layer] if self.windows else None
        return NO_WINDOW if window is None else window


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How the process runs and when it is given up. Times in seconds."""

    cores: tuple[int, ...]
    """One worker is pinned to each; nothing else should run there while tasks do."""
    num_slots: int = 256
    """Requests of each model that may have a task in flight."""
    spin_s: float = 0.01
    """A worker without work polls for so long, then sleeps."""
    stall_timeout_s: float = 10.0
    """With work and no progress for so long, the process is killed."""
    start_timeout_s: float = 300.0
    """A process that is not ready after so long is killed; kernels may have to be compiled."""
    max_restarts: int = 5
    """Deaths in a row without a healthy minute between them, after which it is given up."""
    max_attempts: int = 3
    """A task that was being worked on at so many deaths ends as CRASHED."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field."""
        num_cpus = os.cpu_count() or 1
        if not 1 <= len(self.cores) <= MAX_CORES or len(set(self.cores)) < len(self.cores):
            raise ValueError(f"cores {self.cores}: 1 to {MAX_CORES} different ones are needed")
        if not all(0 <= core < num_cpus for core in self.cores):
            raise ValueError(f"cores {self.cores}: this machine has 0..{num_cpus - 1}")
        if not 1 <= self.num_slots <= 1 << 20:
            raise ValueError(f"num_slots {self.num_slots}: 1..{1 << 20} are allowed")
        for name in ("spin_s", "stall_timeout_s", "start_timeout_s"):
            if not 0.0 <= getattr(self, name) < 1e6:
                raise ValueError(f"{name} {getattr(self, name)}: 0 up to a million seconds")
        if self.max_restarts < 0 or self.max_attempts < 1:
            raise ValueError(
                f"max_restarts {self.max_restarts}, max_attempts {self.max_attempts}: "
                "at least 0 and 1"
            )


def _file_of(fd: int) -> tuple[int, int] | None:
    """Which file a descriptor is of; the number alone may have gone to another one since."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
