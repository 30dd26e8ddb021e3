"""What the scheduling policy is told once, at start."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Sizes of the pool and of a step. Values are validated where the configuration is read."""

    num_blocks: int
    """KV blocks in the pool."""
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
