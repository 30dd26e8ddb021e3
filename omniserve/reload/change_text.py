"""One change of a tier in words, the same in the log and on the command line."""


def change_text(tier: str, key: str, before: str, after: str) -> str:
    """Of the fields of a TierChange, or of the message that carries them."""
    if not tier:
        return f"order: {before} -> {after}"
    if key:
        return f"{tier}: {key} {before or '-'} -> {after or '-'}"
    return f"{tier}: " + (f"new: {after}" if after else "gone")
