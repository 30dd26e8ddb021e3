"""Identity of a full KV block: its own tokens and everything before them."""

from array import array
from hashlib import sha256


def hash_block(previous_hash: bytes, token_bytes: bytes) -> bytes:
    """Chained SHA-256; `previous_hash` is empty for the first block of a sequence.

    A cryptographic hash, because a collision would show one request another one's context.
    """
    return sha256(previous_hash + token_bytes).digest()


def extend_block_hashes(
    block_hashes: list[bytes],
    token_ids: "array[int]",
    num_blocks: int,
    block_size: int,
    tenant: str = "",
) -> None:
    """Append the missing hashes, so that `block_hashes` covers the first `num_blocks` blocks.

    Equal blocks of two tenants differ: what one finds in the cache, and how soon its first token
    comes, would else tell it what another has sent.
    """
    previous_hash = block_hashes[-1] if block_hashes else _origin(tenant)
    for index in range(len(block_hashes), num_blocks):
        block = token_ids[index * block_size : (index + 1) * block_size]
        assert len(block) == block_size, f"block {index} has {len(block)} of {block_size} tokens"
        previous_hash = hash_block(previous_hash, block.tobytes())
        block_hashes.append(previous_hash)


def _origin(tenant: str) -> bytes:
    return sha256(tenant.encode()).digest() if tenant else b""
