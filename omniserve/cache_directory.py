"""Where the product keeps what it found out, between processes."""

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "OMNISERVE_CACHE_DIR"


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """OMNISERVE_CACHE_DIR if set, else `omniserve` in the user's own cache; it may not exist yet.

    None for a user without a home directory.
    """
    given = environment.get(VARIABLE)
    if given:
        # The working directory may change before it is needed again.
        return Path(given).absolute()
    user_cache = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(user_cache) / "omniserve" if os.path.isabs(user_cache) else None
