"""What was read of a checkpoint, in one digest: whether two loads read the same model."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from omniserve.errors import CheckpointError

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a model is besides its weights, for the engine and for whoever makes tokens of text."""


def model_digest(path: Path, weights: Iterable[bytes]) -> str:
    """SHA-256 in hexadecimal, of the small files as they are now and of weights with these digests,
    in their order. Raises CheckpointError where a file cannot be read."""
    digest = hashlib.sha256()
    for name in SMALL_FILES:
        digest.update(f"{name} ".encode() + _file_digest(path / name))
    for weight in weights:
        digest.update(weight)
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except FileNotFoundError:
        return bytes(32)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
