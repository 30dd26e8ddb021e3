"""Configuration files, and what is said of those that are wrong."""

from pathlib import Path

import pytest

from omniserve.config import load_config
from omniserve.errors import ConfigError

MINIMAL = """\
models:
  - {name: demo, path: models/demo}
tiers:
  - {name: batch, class: best_effort}
"""
TIERS = "tiers: [{name: batch, class: best_effort}]\n"
MODELS = "models: [{name: demo, path: models/demo}]\n"


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "omniserve.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(directory: Path, text: str | bytes) -> list[str]:
    """The lines of the error, without the file's directory."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(directory, text))
    return str(caught.value).replace(f"{directory}/", "").splitlines()
