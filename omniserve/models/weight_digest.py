"""What is the same weight: a cryptographic hash of its bytes, computed by several threads."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

_PIECE_BYTES = 1 << 20


def weight_digest(tensor: Tensor) -> bytes:
    """A SHA-256 of dtype, shape and bytes, 32 bytes long; on an accelerator of a copy from there.

    As many threads compute it as torch's operators take that are called in this one.

    Nobody can make two tensors that have the same one, so who has the digest need not compare the
    bytes. SHA-256 because CPUs have instructions for it: twice as fast as BLAKE2b where they do.
    """
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    pieces = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
    # hashlib lets go of the interpreter's lock. One small piece is not worth waking a thread.
    num_threads = 1 if len(pieces) < 2 else torch.get_num_threads()
    digests = map(_hash, pieces) if num_threads < 2 else _threads(num_threads).map(_hash, pieces)
    head = f"{tensor.dtype} {tuple(tensor.shape)} {_PIECE_BYTES} ".encode()
    return hashlib.sha256(head + b"".join(digests)).digest()


def combined_digest(kind: str, parts: list[bytes]) -> bytes:
    """Of something that `kind` makes of parts with these digests, or equally long names."""
    return hashlib.sha256(f"{kind} {len(parts)} ".encode() + b"".join(parts)).digest()


def _hash(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


@cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="weight-digest")
