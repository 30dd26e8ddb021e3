"""How numbers look, in the terminal and on pages."""

NOTHING = "-"


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


def format_rate(value: float | None) -> str:
    """Something per second, to three digits or the whole number."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def format_age(seconds: float) -> str:
    """The two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"
