"""Prompts of simulated requests: equal where a trace says that they begin alike, else different."""

from array import array

from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS

_NUM_HASHES = (1 << 63) - 1
"""Traces may have hashes of any length and sign; tokens have 63 bits and a sign."""


def prompt_tokens(num_tokens: int, prefix_hashes: tuple[int, ...], own_number: int) -> "array[int]":
    """Tokens are numbers without a vocabulary; `own_number`, at least 0, is no other request's."""
    tokens = array("q")
    for prefix_hash in prefix_hashes:
        if len(tokens) >= num_tokens:
            break
        # Below 0, so that none of them is some request's own number.
        tokens.extend(array("q", [-1 - prefix_hash % _NUM_HASHES]) * PREFIX_BLOCK_TOKENS)
    del tokens[num_tokens:]
    tokens.extend(array("q", [own_number]) * (num_tokens - len(tokens)))
    return tokens
