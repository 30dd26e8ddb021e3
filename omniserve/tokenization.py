"""Tokenizers of the front: text to token ids and back, without torch or transformers."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from omniserve.errors import CheckpointError, InvalidRequest
from omniserve.regular_file import read_small_file
from omniserve.tenant_threads import TenantThreads

LONG_TEXT_CHARS = 4096
"""Longer texts are tokenised on a thread, so that the event loop goes on streaming."""

MAX_CHARS_PER_TOKEN = 32
"""A text with more characters than this for each token of the context is refused untokenised."""


class ModelTokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(
        self, tokenizer: Tokenizer, is_byte_level: bool, threads: TenantThreads | None = None
    ) -> None:
        """Long texts go to `threads`, which tokenizers of several models may share."""
        self._tokenizer = tokenizer
        self._threads = threads or TenantThreads()
        self._is_byte_level = is_byte_level
        self._added_ids = frozenset(tokenizer.get_added_tokens_decoder())
        self._token_bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, checkpoint: Path, threads: TenantThreads | None = None) -> "ModelTokenizer":
        """Reads a checkpoint's `tokenizer.json`; raises CheckpointError."""
        path = checkpoint / "tokenizer.json"
        try:
            text = read_small_file(path)
            tokenizer = Tokenizer.from_buffer(text)
            decoder = msgspec.json.decode(text, type=_DecoderOnly).decoder
        except FileNotFoundError:
            message = f"{path}: missing; a model is served with its tokenizer"
            raise CheckpointError(message) from None
        # The tokenizers package raises plain Exception for a file that it cannot use.
        except Exception as error:
            raise CheckpointError(f"{path}: not a usable tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, b'"ByteLevel"' in bytes(decoder), threads)

    async def encode(
        self, text: str, *, add_special_tokens: bool, max_tokens: int, name: str, tenant: str = ""
    ) -> tuple[int, ...]:
        """Token ids of a text that messages call `name`.

        Refuses at once what cannot be `max_tokens` tokens or fewer. Long texts wait until it is
        the turn of their tenant.
        """
        max_chars = MAX_CHARS_PER_TOKEN * max_tokens
        if len(text) > max_chars:
            raise InvalidRequest(
                f"{name}: {len(text)} characters are too long; the model takes {max_tokens} tokens "
                f"and at most {max_chars} characters",
                name,
            )
        if len(text) <= LONG_TEXT_CHARS:
            return self._encode(text, add_special_tokens, name)
        return await self._threads.run(tenant, lambda: self._encode(text, add_special_tokens, name))

    def _encode(self, text: str, add_special_tokens: bool, name: str) -> tuple[int, ...]:
        try:
            # As a batch of one: encode() would keep all other threads waiting meanwhile.
            (encoding,) = self._tokenizer.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
            return tuple(encoding.ids)
        except TypeError:
            # Only a lone surrogate, which JSON can carry and UTF-8 cannot, gets here.
            raise InvalidRequest(f"{name}: the text is not valid Unicode", name) from None

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=not keep_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; empty for an id that no token has."""
        known = self._token_bytes.get(token_id)
        if known is None:
            known = self._token_bytes[token_id] = self._bytes_of(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """The text of one token; bytes that are no whole character are written as \\xNN."""
        return self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")

    def _bytes_of(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added_ids:
            return token.encode()
        if self._is_byte_level:
            return b"".join(_BYTE_OF_CHARACTER.get(char) or char.encode() for char in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return token.replace("\u2581", " ").encode()


class _DecoderOnly(msgspec.Struct):
    """The one part of tokenizer.json that says how tokens spell bytes."""

    decoder: msgspec.Raw = msgspec.Raw(b"null")


def _byte_of_character() -> dict[str, bytes]:
    """Byte-level BPE spells bytes as themselves where they print, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): bytes([byte]) for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _byte_of_character()
