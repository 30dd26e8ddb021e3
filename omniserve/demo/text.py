"""How tiers look, in the terminal and on the page."""

from rich.text import Text

from omniserve.demo.measure import Tier

_STYLES = {"latency_sensitive": "bold cyan", "best_effort": "bold yellow"}


def goal_text(tier: Tier) -> str:
    """What the objectives of a tier ask for, in one line."""
    if tier.ttft_ms is None or tier.tpot_ms is None or tier.percentile is None:
        return "no objectives"
    return (
        f"{tier.percentile:g} % with TTFT up to {tier.ttft_ms:g} ms "
        f"and TPOT up to {tier.tpot_ms:g} ms"
    )


def styled(tier: Tier) -> Text:
    return Text(tier.name, style=_STYLES[tier.service_class])
