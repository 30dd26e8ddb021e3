"""OmniServe: several language models, latency-sensitive and best-effort tiers, one accelerator."""

__version__ = "0.1.0"
