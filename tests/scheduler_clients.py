"""Requests as their senders and an executor see them, and what each must produce."""

from dataclasses import dataclass
from zlib import crc32

from scheduler import Request, Status

VOCAB_SIZE = 3

Prefix = tuple[int, ...]


def sample(prefix: Prefix) -> int:
    """The token that the modelled network puts after a prefix; few tokens, so prefixes recur."""
    return crc32(bytes(prefix)) % VOCAB_SIZE


def find_outputs(request: Request, stop: Prefix, max_model_len: int) -> list[int]:
    """What a request must produce, whatever runs beside it: the oracle."""
    tokens, outputs = tuple(request.token_ids), list[int]()
    while len(outputs) < request.max_tokens and len(tokens) < max_model_len:
        outputs.append(sample(tokens))
        tokens += (outputs[-1],)
        if stop and tuple(outputs[-len(stop) :]) == stop:
            break
    return outputs


@dataclass
class Client:
    """One request as its sender and the executor see it."""

    request: Request
    order: int
    """Place in arrival order."""
    prompt: Prefix
    outputs: list[int]
    """What the oracle says will come."""
    received: int = 0
    ended: bool = False
    aborted: bool = False
    slot: int | None = None
    scheduled: int = 0
    num_sampled: int = 0
    """Tokens that plans were asked to sample since admission, and those known then."""
    num_in_flight: int = 0
    is_swapping_in: bool = False
    """Its slot and table are there, and their contents on their way."""

    @property
    def name(self) -> str:
        return self.request.request_id

    @property
    def is_latency_sensitive(self) -> bool:
        return self.name.startswith("ls")

    @property
    def is_running(self) -> bool:
        return self.slot is not None and not self.ended and not self.is_swapping_in

    @property
    def is_waiting(self) -> bool:
        return self.request.status is Status.WAITING

    @property
    def known(self) -> int:
        return len(self.prompt) + self.received

    @property
    def tokens(self) -> Prefix:
        return self.prompt + tuple(self.outputs)

    @property
    def may_depart(self) -> bool:
        """Whether it could be on its way to the host as soon as its plans complete."""
        is_decoding = self.num_in_flight > 0 and self.num_unscheduled <= 1
        return self.is_running and is_decoding and not self.is_latency_sensitive

    @property
    def is_at_limit(self) -> bool:
        """Whether it has reached the length at which the scheduler ends it."""
        return self.known >= self.request.max_total_tokens

    def true_prefix(self, end: int) -> Prefix:
        """What precedes `end`. Behind its last output a request may compute one row too many."""
        tokens = self.tokens
        while len(tokens) < end:
            tokens += (sample(tokens),)
        return tokens[:end]

    @property
    def is_plannable(self) -> bool:
        """Whether a running request has a token that could be computed now."""
        pending = self.num_sampled > self.received
        at_end = len(self.prompt) + self.num_sampled >= self.request.max_total_tokens
        waits = self.request.needs_known_tokens
        return self.is_running and not (pending and (at_end or waits))

    def comes_before(self, other: "Client") -> bool:
        """Whether `other` has to yield to this one."""
        if self.is_latency_sensitive != other.is_latency_sensitive:
            return self.is_latency_sensitive
        return self.order < other.order

    @property
    def num_unscheduled(self) -> int:
        return len(self.prompt) + self.num_sampled - self.scheduled
