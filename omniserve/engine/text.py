"""A model's tokenizer, where it has one."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from omniserve.engine.detokenizer import Detokenizer, NoText, TextStream
from omniserve.errors import CheckpointError


class TextModel:
    """Makes one detokenizer a request."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path) -> "TextModel":
        """Reads tokenizer.json of a checkpoint.

        Raises:
            CheckpointError: the file is there but cannot be read.
        """
        file = path / "tokenizer.json"
        if not file.exists():
            return cls(None)
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{file}: not a tokenizer: {error}") from error

    def stream(self, prompt_token_ids: Sequence[int]) -> Detokenizer:
        if self._tokenizer is None:
            return NoText()
        return TextStream(self._tokenizer, prompt_token_ids)
