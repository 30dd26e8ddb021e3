"""Prompts of a run: token ids from a seeded generator."""

import functools

import numpy as np
import numpy.typing as npt

from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS

MAX_KEPT_BLOCKS = 4096
_OWN, _SHARED = 0, 1


class Prompts:
    """Token ids for one stream of one run: equal arguments give equal tokens.

    Blocks of prompts with equal prefix hashes are equal, those with different ones differ; what
    has no hash is like nothing else. Hashes mean the same in all streams of a run.
    """

    def __init__(self, seed: int, stream: str, vocab_size: int) -> None:
        self._seed = seed
        self._stream = tuple(stream.encode())
        self._vocab_size = vocab_size
        self._block = functools.lru_cache(MAX_KEPT_BLOCKS)(self._shared_block)

    def token_ids(
        self, index: int, num_tokens: int, prefix_hashes: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """The prompt of request `index`."""
        num_blocks = -(-num_tokens // PREFIX_BLOCK_TOKENS)
        parts = [self._block(prefix_hash) for prefix_hash in prefix_hashes[:num_blocks]]
        num_own = num_tokens - len(parts) * PREFIX_BLOCK_TOKENS
        if num_own > 0:
            parts.append(self._tokens(num_own, _OWN, index, *self._stream))
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return tuple(whole[:num_tokens].tolist())

    def _shared_block(self, prefix_hash: int) -> npt.NDArray[np.int64]:
        # A seed has no sign.
        return self._tokens(PREFIX_BLOCK_TOKENS, _SHARED, abs(prefix_hash), prefix_hash < 0)

    def _tokens(self, num_tokens: int, *key: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self._seed, *key)).integers(self._vocab_size, size=num_tokens)
