"""Whether best-effort requests, if admitted, would find room for their KV until they end."""

from collections.abc import Iterable
from random import Random

from scheduler.host_blocks import HostBlocks
from scheduler.length_history import LengthHistory
from scheduler.offloading import Offloader
from scheduler.peak_kv import peak_tokens
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass
from scheduler.settings import SchedulerSettings


class KvForecast:
    """The Past-Future scheduler's admission (LightLLM), over device and host memory together.

    A request is expected to become as long as one of those that ended lately and were longer than
    it is now. Admitting one whose KV finds room at its start, but not later, costs a preemption,
    and so computing its tokens again. Host memory counts while decodes may go there: prompts that
    rely on it otherwise hold the device's memory, each a part of what it needs, and few decode.
    """

    def __init__(
        self,
        queues: RequestQueues,
        offloader: Offloader,
        host_blocks: HostBlocks,
        block_size: int,
        reserve_share: float,
    ) -> None:
        """`reserve_share`: part of the memory that is kept for what is longer than expected."""
        self._queues = queues
        self._offloader = offloader
        self._host_blocks = host_blocks
        self._block_size = block_size
        self._share = 1.0 - reserve_share
        self._history = LengthHistory()
        self._random = Random(0)
        self._expected: dict[str, int] = {}
        """Output tokens, by request."""
        self.last_shortage = ""
        """In words, why a request did not fit when last one did not."""

    def note_length(self, num_output_tokens: int) -> None:
        """A best-effort request had all its tokens, so many."""
        self._history.note(num_output_tokens)

    def forget(self, request: Request) -> None:
        """The request is gone, whether it had all its tokens or not."""
        self._expected.pop(request.request_id, None)

    def fits(self, newcomer: Request, num_device_tokens: int) -> bool:
        """Whether one more would; `num_device_tokens` is what latency-sensitive work leaves."""
        there = [*self._queues.running[ServiceClass.BEST_EFFORT], *self._queues.offloaded]
        if not there:
            # Nobody whose end would be worth waiting for.
            return True
        # What it has of a shared memory now: what it could do with comes before it is asked for.
        num_host_blocks = self._host_blocks.num_granted_blocks if self._offloader.is_allowed else 0
        capacity = self._share * (num_device_tokens + num_host_blocks * self._block_size)
        num_tokens = peak_tokens(self._lengths([*there, newcomer]))
        if num_tokens <= capacity:
            return True
        self.last_shortage = f"{num_tokens} tokens at one time are expected, {capacity:.0f} may be"
        return False

    def _lengths(self, requests: Iterable[Request]) -> Iterable[tuple[int, int]]:
        for request in requests:
            num_generated = request.num_output_tokens
            expected = self._expected.get(request.request_id, 0)
            if expected <= num_generated:
                most = request.max_total_tokens - request.num_prompt_tokens
                expected = self._history.draw(num_generated, most, self._random)
                self._expected[request.request_id] = expected
            yield len(request.token_ids), max(0, expected - num_generated)


def kv_forecast(
    settings: SchedulerSettings, queues: RequestQueues, offloader: Offloader, blocks: HostBlocks
) -> KvForecast | None:
    """As the settings have it; None where requests are admitted if they find room at their
    start."""
    if settings.kv_reserve_share is None:
        return None
    share = settings.kv_reserve_share
    return KvForecast(queues, offloader, blocks, settings.block_size, share)
