"""How numbers and tiers look, in the terminal and on the page."""

from rich.text import Text

from omniserve.demo.measure import Tier

NOTHING = "-"
_STYLES = {"latency_sensitive": "bold cyan", "best_effort": "bold yellow"}


def format_ms(value: float | None) -> str:
    """Milliseconds to three digits or the whole number."""
    if value is None:
        return NOTHING
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def format_share(value: float | None) -> str:
    """Never rounded up to a whole: 100 % means every request."""
    if value is None:
        return NOTHING
    return "100 %" if value == 1 else f"{min(value, 0.999):.1%}".replace("%", " %")


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
