"""What the scheduling policy is told once, at start."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PiggybackLimits:
    """What best-effort decodes on the host may take of it and of a step."""

    num_lanes: int
    """Requests that may be offloaded at one time."""
    max_lane_rows: int
    """Most lane rows that join at one layer."""
    max_lane_rows_beside_ls: int
    """The same in a plan that also carries latency-sensitive rows."""
    max_resident_decodes: int | None = None
    """Best-effort decodes that may stay on the device; None: as many as its memory holds."""
    max_resident_blocks: int | None = None
    """Device blocks that best-effort decodes may hold; None: all there are."""
    return_patience: int = 32
    """Plans in a row that must find room on the device before a request returns to it."""

    @property
    def is_device_limited(self) -> bool:
        """Whether decodes may have to leave a device that has room for them."""
        return self.max_resident_decodes is not None or self.max_resident_blocks is not None

    def may_stay(self, num_decodes: int, num_blocks: int) -> bool:
        """Whether so many best-effort decodes with so many blocks may be on the device."""
        most_decodes, most_blocks = self.max_resident_decodes, self.max_resident_blocks
        return (most_decodes is None or num_decodes <= most_decodes) and (
            most_blocks is None or num_blocks <= most_blocks
        )


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Sizes of the pool and of a step. Values are validated where the configuration is read."""

    num_blocks: int
    """KV blocks in the pool, or the most it may have."""
    block_size: int
    """Tokens per KV block."""
    max_running_requests: int
    """Requests that may hold a slot, and so blocks, at one time."""
    max_step_tokens: int
    """Most tokens one plan computes."""
    best_effort_tokens_beside_ls: int
    """Most best-effort tokens in a plan that also carries latency-sensitive rows."""
    max_model_len: int
    """Prompt and output tokens a sequence may reach."""
    prefix_caching: bool
    """Whether full blocks are kept after use and shared by requests with the same prefix."""
    kv_reserve_share: float | None = None
    """Best-effort requests are admitted while the most KV that all of them are expected to hold at
    one time leaves this part of it free; None: while there is room for them at their start."""
    extent_blocks: int | None = None
    """Blocks that are granted and withdrawn together, while the pool is in use; None: it has all of
    them for good."""
    piggyback: PiggybackLimits | None = None
    """None: best-effort decodes that find no room wait, and are computed again."""
