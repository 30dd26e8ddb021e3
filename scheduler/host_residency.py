"""What offloaded requests hold on the host: a lane and a block table each."""

from collections.abc import Collection

from scheduler.block_hash import extend_block_hashes
from scheduler.host_blocks import HostBlocks
from scheduler.host_stay import HostStay, Phase
from scheduler.integrity import require_equal
from scheduler.lanes import LanePool
from scheduler.request import Request
from scheduler.settings import SchedulerSettings

_RESERVE_SHARE = 64
"""One in so many blocks is kept for requests that grow, when another one comes to the host."""


class HostResidency:
    """Gives requests lanes and host blocks, takes them back, and lets full blocks be shared."""

    def __init__(self, settings: SchedulerSettings, blocks: HostBlocks, num_lanes: int) -> None:
        self.lanes = LanePool(num_lanes)
        self.num_owed = 0
        """Blocks that requests on the host wait for; these come before any that are to come."""
        self._blocks = blocks
        self._block_size = settings.block_size
        self._prefix_caching = settings.prefix_caching

    @property
    def num_blocks(self) -> int:
        """Most that the model can have on the host."""
        return self._blocks.num_blocks

    @property
    def can_grow(self) -> bool:
        """Whether a request on the host can have one block more."""
        return self._blocks.can_allocate(1)

    @property
    def has_blocks_to_come(self) -> bool:
        """Whether blocks will be free once lanes that are stopping are quiet."""
        return any(self.lanes.stopping_tables)

    def can_take(self, request: Request, num_expected: int = 0) -> bool:
        """Whether a decode would find its place beside `num_expected` others that are to come."""
        if self.lanes.num_free <= num_expected or not self.fits_alone(request):
            return False
        shared = self._share(request)
        fits = self._fits_now(request, shared)
        self._blocks.free(shared)
        return fits

    def has_room_for(self, request: Request) -> bool:
        """Whether a decode would find its place, were nothing known of its tokens; `can_take` says
        it exactly, and takes longer."""
        return self._fits_now(request, [])

    def take(self, request: Request) -> HostStay | None:
        """A lane, and blocks for what is computed, if they and one token more find room."""
        if not self.lanes.num_free or not self.fits_alone(request):
            return None
        shared = self._share(request)
        if not self._fits_now(request, shared):
            self._blocks.free(shared)
            return None
        num_new = self._num_needed(request.num_computed) - len(shared)
        block_ids = shared + self._blocks.allocate(num_new)
        return HostStay(self.lanes.take(), block_ids, len(shared))

    def can_hold_next(self, request: Request) -> bool:
        """Whether the next token finds its place."""
        return self.can_grow or not self.lacks_block(request)

    def grow(self, request: Request) -> None:
        """Make room for the next token; ask `can_hold_next` first."""
        assert request.stay is not None
        if self.lacks_block(request):
            request.stay.block_ids += self._blocks.allocate(1)

    def lacks_block(self, request: Request) -> bool:
        """Whether the next token of a request on the host needs a block more."""
        assert request.stay is not None
        return self._num_needed(request.num_computed + 1) > len(request.stay.block_ids)

    def num_full(self, request: Request) -> int:
        """Blocks all of whose tokens are computed."""
        return request.num_computed // self._block_size

    def register(self, request: Request, first: int) -> None:
        """Make full blocks findable from index `first` of the table on."""
        last = self.num_full(request)
        if not self._prefix_caching or first >= last:
            return
        assert request.stay is not None
        extend_block_hashes(
            request.block_hashes, request.token_ids, last, self._block_size, request.tenant
        )
        for index in range(first, last):
            self._blocks.register(request.stay.block_ids[index], request.block_hashes[index])

    def release(self, request: Request) -> None:
        """Take back the lane and the blocks; both are free once the lane is quiet."""
        assert request.stay is not None
        self.lanes.release(request.stay.lane, request.stay.block_ids)
        request.stay = None

    def lane_is_quiet(self, lane: int) -> None:
        self._blocks.free(self.lanes.quieten(lane))

    def _num_needed(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def num_at_end(self, request: Request) -> int:
        """Blocks that hold all that is ever computed of it."""
        # The last token of a sequence is never computed, so it needs no place.
        return self._num_needed(request.max_total_tokens - 1)

    def fits_alone(self, request: Request) -> bool:
        """Whether the host can ever hold all of a request; where models share its memory, one that
        it could hold may have become too long."""
        return self.num_at_end(request) <= self._blocks.num_blocks

    def _fits_now(self, request: Request, shared: list[int]) -> bool:
        num_new = self._num_needed(request.num_computed + 1) - len(shared)
        # A request that comes first must not be refused for the sake of others that are not there.
        num_reserved = self._blocks.num_granted_blocks // _RESERVE_SHARE
        num_kept = num_reserved if self.lanes.num_in_use else 0
        return self._blocks.can_allocate(num_new + num_kept + self.num_owed)

    def _share(self, request: Request) -> list[int]:
        if not self._prefix_caching:
            return []
        num_full = self.num_full(request)
        extend_block_hashes(
            request.block_hashes, request.token_ids, num_full, self._block_size, request.tenant
        )
        return self._blocks.share(request.block_hashes[:num_full])

    def check_integrity(self, staying: Collection[Request]) -> None:
        """Raise unless `staying` and stopping lanes hold exactly what is lent out."""
        stays = [(request, request.stay) for request in staying if request.stay is not None]
        self.lanes.check_integrity([stay.lane for _, stay in stays])
        tables = [stay.block_ids for _, stay in stays]
        self._blocks.check_integrity([*tables, *self.lanes.stopping_tables])
        for request, stay in stays:
            is_in_lanes = stay.phase is Phase.IN_LANES
            num_blocks = self._num_needed(request.num_computed + is_in_lanes)
            what = f"host blocks of {request.request_id}"
            require_equal(what, len(stay.block_ids), num_blocks)
            if is_in_lanes:
                require_equal(f"{what} announced", stay.num_announced, num_blocks)
