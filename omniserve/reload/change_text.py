"""One change of a tier or tenant in words, the same in the log and on the command line."""


def change_text(tier: str, key: str, before: str, after: str) -> str:
    """Of the fields of a TierChange, or of the message that carries them."""
    values = f"{before or '-'} -> {after or '-'}"
    if not tier:
        return f"order: {values}" if key == "tiers" else f"{key}: {values}"
    if key:
        return f"{tier}: {key} {values}"
    return f"{tier}: " + (f"new: {after}" if after else "gone")
