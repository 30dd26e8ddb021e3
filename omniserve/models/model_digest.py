"""What was read of a checkpoint, in one digest: whether two loads read the same model."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from omniserve.adapter_config import CONFIG_NAME as ADAPTER_CONFIG_NAME
from omniserve.errors import CheckpointError
from omniserve.regular_file import read_small_file
from omniserve.settings import ModelSettings

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    ADAPTER_CONFIG_NAME,
)
"""What a model is besides its weights, for the engine and for whoever makes tokens of text."""


def model_digest(settings: ModelSettings, weights: Iterable[bytes]) -> str:
    """SHA-256 in hexadecimal, of the small files as they are now and of weights with these digests,
    in their order. Raises CheckpointError where a file cannot be read."""
    digest = hashlib.sha256()
    directories = (settings.checkpoint_path, settings.adapter_path)
    for directory in (Path(each) for each in directories if each is not None):
        for name in SMALL_FILES:
            digest.update(f"{name} ".encode() + _file_digest(directory / name))
    for weight in weights:
        digest.update(weight)
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(read_small_file(path)).digest()
    except FileNotFoundError:
        return bytes(32)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
