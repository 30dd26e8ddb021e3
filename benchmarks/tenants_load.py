"""A tenant as a client, and one that sends at its times and measures."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import grpc.aio

from omniserve.v1 import omniserve_pb2 as pb

VOCAB_SIZE = 256
"""Every model made for measurements has more."""
_GENERATE = "/omniserve.v1.Inference/Generate"
_QUIET = (("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0))
_REFUSED = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Work:
    """What every request asks for."""

    model: str
    tier: str
    num_prompt_tokens: int
    max_tokens: int

    def message(self, random_numbers: random.Random) -> bytes:
        ids = [random_numbers.randrange(3, VOCAB_SIZE) for _ in range(self.num_prompt_tokens)]
        sampling = pb.Sampling(max_tokens=self.max_tokens, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(
            model=self.model, tier=self.tier, token_ids=pb.TokenIds(ids=ids), sampling=sampling
        )
        return request.SerializeToString()


class RequestRefused(Exception):
    """The server would not take it now."""


class Tenant:
    """A client with a token and a connection of its own. Made inside a running event loop."""

    def __init__(self, address: str, token: str, work: Work, seed: int) -> None:
        self._channel = grpc.aio.insecure_channel(address, _QUIET)
        self._generate: grpc.aio.UnaryStreamMultiCallable[bytes, pb.GenerateChunk]
        self._generate = self._channel.unary_stream(
            _GENERATE, response_deserializer=pb.GenerateChunk.FromString
        )
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._work = work
        self._random = random.Random(seed)

    async def ask(self) -> float:
        """Reads one answer to its end and returns the seconds until its first token.

        Raises RequestRefused; every other end is an error of grpc's.
        """
        payload = self._work.message(self._random)
        began_s = time.monotonic()
        first_s: float | None = None
        try:
            async for chunk in self._generate(payload, metadata=self._metadata):
                if first_s is None and chunk.token_ids:
                    first_s = time.monotonic() - began_s
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSED:
                raise RequestRefused(error.details()) from None
            raise
        assert first_s is not None, "an answer without a token"
        return first_s

    async def close(self) -> None:
        await self._channel.close(None)


@dataclass(slots=True)
class Window:
    """What happened in one stretch of time."""

    condition: str
    ttfts_s: list[float] = field(default_factory=list)
    """Of the measured tenant's answered requests."""
    num_refused: int = 0
    """Of the measured tenant's requests."""
    num_other_done: int = 0
    num_other_refused: int = 0


async def send_at_times(tenant: Tenant, times_s: list[float], window: Window) -> None:
    """Every request when it is due, whatever became of those before it; waits for the last."""
    began_s = time.monotonic()

    async def send() -> None:
        try:
            window.ttfts_s.append(await tenant.ask())
        except RequestRefused:
            window.num_refused += 1

    async with asyncio.TaskGroup() as requests:
        for at_s in times_s:
            await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
            requests.create_task(send())


def arrival_times_s(rate: float, seconds: float, seed: int) -> list[float]:
    """Of a Poisson process; the same for the same seed, so that windows can be compared."""
    return list(_arrivals(random.Random(seed), rate, seconds))


def _arrivals(random_numbers: random.Random, rate: float, seconds: float) -> Iterator[float]:
    at_s = random_numbers.expovariate(rate)
    while at_s < seconds:
        yield at_s
        at_s += random_numbers.expovariate(rate)
