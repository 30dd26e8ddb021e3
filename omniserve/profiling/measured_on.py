"""What measured step times hold for: another machine, model or version has others."""

import hashlib
from dataclasses import dataclass

import msgspec

PROFILE_FORMAT = 1
"""Of the file and of what is measured: raised where old profiles would mislead."""


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """Hardware, threads, model and software."""

    cpu: str
    """The processor's own name."""
    vector_path: str
    """Of the kernels on a CPU."""
    num_cores: int
    """That the process may use."""
    device: str
    """In words, with the threads of a CPU device."""
    dtype: str
    architecture: str
    """Digest of the model's config.json."""
    block_size: int
    max_step_tokens: int
    """Beyond it nothing was measured, and so for requests."""
    max_running_requests: int
    host_attention_threads: int
    """0: no piggybacking."""
    torch: str
    """Its version."""
    omniserve: str
    """Its version."""
    format: int = PROFILE_FORMAT

    @property
    def key(self) -> str:
        """The same for the same, and a name for a file."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]
