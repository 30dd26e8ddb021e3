"""What a scheduler holds, in numbers: for whoever reports on it or tests it."""

from collections import Counter

from scheduler.host_residency import HostResidency
from scheduler.queues import RequestQueues, count_by_tier
from scheduler.request import ServiceClass
from scheduler.residency import Residency
from scheduler.token_load import TokenLoad, token_load


class Counts:
    """Reads, and changes nothing."""

    def __init__(self, queues: RequestQueues, residency: Residency, host: HostResidency) -> None:
        self._queues = queues
        self._residency = residency
        self._host = host

    def running_by_tier(self) -> Counter[str]:
        return count_by_tier(self._queues.running.values())

    def waiting_by_tier(self) -> Counter[str]:
        return count_by_tier(self._queues.waiting.values())

    def prefilling_ids(self) -> tuple[str, ...]:
        """Requests that run and have no token yet."""
        return tuple(
            request.request_id
            for running in self._queues.running.values()
            for request in running
            if not request.num_output_tokens
        )

    def num_waiting_in(self, tier: str) -> int:
        """Requests of one tier that wait; unlike `waiting_by_tier` at no cost for each of them."""
        return sum(line.num_waiting[tier] for line in self._queues.waiting.values())

    def num_left_waiting(self, tier: str) -> int:
        """Requests of one tier that ever stopped waiting, to run or to end."""
        return sum(line.num_left[tier] for line in self._queues.waiting.values())

    def offloaded_by_tier(self) -> Counter[str]:
        return count_by_tier([self._queues.offloaded])

    def given_to_waiting_tenants(self, service_class: ServiceClass) -> dict[str, float]:
        """Weighted tokens that tenants with waiting requests have had, by tenant."""
        share = self._queues.shares[service_class]
        tenants = {request.tenant for request in self._queues.waiting[service_class]}
        return {tenant: share.given(tenant) for tenant in tenants}

    def token_load(self) -> TokenLoad:
        """Requests and their tokens; takes time for each best-effort request."""
        return token_load(self._queues)

    @property
    def num_lanes_in_use(self) -> int:
        """Lanes of offloaded requests, and those released that are not quiet yet."""
        return self._host.lanes.num_in_use

    @property
    def num_host_blocks(self) -> int:
        """KV blocks that the model can have on the host at most."""
        return self._host.num_blocks

    @property
    def num_used_blocks(self) -> int:
        """KV blocks held by requests; cached blocks that nobody holds count as free."""
        return self._residency.blocks.num_used

    @property
    def num_granted_blocks(self) -> int:
        """KV blocks that there are now; of one model alone on its memory, all."""
        return self._residency.blocks.num_granted

    @property
    def num_cached_blocks(self) -> int:
        """KV blocks that nobody holds and that hold a known prefix."""
        return self._residency.blocks.num_cached

    @property
    def num_preemptions(self) -> int:
        return self._queues.num_preemptions

    @property
    def num_cached_prompt_tokens(self) -> int:
        """Prompt tokens that the prefix cache held when their request was first admitted."""
        return self._residency.num_cached_prompt_tokens
