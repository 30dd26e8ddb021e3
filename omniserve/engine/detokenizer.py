"""Token ids to text as they come: whole characters only, and never any part of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_NUM_PRIMING_TOKENS = 6
# After this many tokens only the end may still become a character; the bytes before it never will.
_MOST_UNFINISHED_TOKENS = 8
# Of the four bytes that a character may have; some decoders replace each of them by itself.
_MOST_UNFINISHED_BYTES = 3
_REPLACEMENT = "\ufffd"


class TextStream:
    """Incremental detokenisation of one request.

    Decoders look at neighbours (a leading space, a character of several tokens), so new text is the
    difference between decoding a few tokens with and without the newest. (The library's
    DecodeStream repeats part of the prompt where that ends inside a character.)
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Some decoders drop a leading space at the start of a text: begin inside the prompt.
        self._window = list(prompt_token_ids[-_NUM_PRIMING_TOKENS:])
        self._num_read = len(self._window)
        self._read_text = self._decode(self._window)

    def push(self, token_id: int) -> str:
        """Text that this token completed; empty while a character is unfinished."""
        self._window.append(token_id)
        text = self._decode(self._window)
        num_unread = len(self._window) - self._num_read
        if text.endswith(_REPLACEMENT) and num_unread < _MOST_UNFINISHED_TOKENS:
            return ""
        num_unfinished = _count_unfinished(text)
        new_text = text[len(self._read_text) : len(text) - num_unfinished]
        self._window = self._window[self._num_read :]
        self._num_read = len(self._window)
        read_text = self._decode(self._window)
        self._read_text = read_text[: len(read_text) - num_unfinished]
        return new_text

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


def _count_unfinished(text: str) -> int:
    """How much at the end of the text may stand for the first bytes of a character."""
    return min(len(text) - len(text.rstrip(_REPLACEMENT)), _MOST_UNFINISHED_BYTES)


class StopStringFilter:
    """Holds back text that may turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that is safe to emit, and the stop string if one was completed.

        The stop string itself, and all after it, is dropped.
        """
        if not self._stops:
            return text, None
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops]
        hits = [(position, stop) for position, stop in found if position >= 0]
        if hits:
            position, stop = min(hits, key=lambda hit: hit[0])
            safe, self._held = self._held[:position], ""
            return safe, stop
        num_held = max(self._overlap(stop) for stop in self._stops)
        split = len(self._held) - num_held
        safe, self._held = self._held[:split], self._held[split:]
        return safe, None

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper prefix of `stop` that ends the held text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
