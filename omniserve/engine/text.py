"""A model's tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from omniserve.engine.detokenizer import TextStream
from omniserve.errors import CheckpointError


class TextModel:
    """Makes one detokenizer a request."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path) -> "TextModel":
        """Reads tokenizer.json of a checkpoint.

        Raises:
            CheckpointError: the file cannot be read.
        """
        file = path / "tokenizer.json"
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{file}: not a tokenizer: {error}") from error

    def stream(self, prompt_token_ids: Sequence[int]) -> TextStream:
        return TextStream(self._tokenizer, prompt_token_ids)
