"""The line that `systemctl status` shows of the daemon."""

from collections import Counter
from collections.abc import Collection

from omniserve.settings import ModelStats

MAX_TIERS = 8
"""Of more, the others are only counted."""


def serving_text(models: Collection[str], stats: Collection[ModelStats]) -> str:
    """Which models are served, and the requests of each tier over all of them."""
    running: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for each in stats:
        running.update(each.running)
        waiting.update(each.waiting)
    tiers = sorted(running.keys() | waiting.keys())
    parts = [f"{tier} {running[tier]} running {waiting[tier]} waiting" for tier in tiers]
    if len(parts) > MAX_TIERS:
        parts[MAX_TIERS:] = [f"{len(parts) - MAX_TIERS} more tiers"]
    text = f"serving {', '.join(models)}"
    return f"{text}: {', '.join(parts)}" if parts else f"{text}: idle"
