"""What requests hold on the device: a slot and a block table each."""

from collections.abc import Collection

from scheduler.block_hash import extend_block_hashes
from scheduler.blocks import BlockManager
from scheduler.integrity import require_equal
from scheduler.request import Request, Status
from scheduler.settings import SchedulerSettings
from scheduler.slots import SlotPool


class Residency:
    """Gives requests slots and blocks, takes them back, and keeps the prefix cache fed."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.blocks = BlockManager(settings.num_blocks, settings.block_size, settings.extent_blocks)
        self.slots = SlotPool(settings.max_running_requests)
        self.num_cached_prompt_tokens = 0
        self.block_size = settings.block_size
        self.num_spare_blocks = 0
        """Of a budget that models share: blocks that this one would be granted at once."""
        self._prefix_caching = settings.prefix_caching

    def num_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks to add so that the table covers `num_tokens` tokens."""
        return -(-num_tokens // self.block_size) - len(request.block_ids)

    def num_missing_to_start(self, request: Request) -> int:
        """Blocks to add so that all known tokens, and one more, have their place."""
        # The last token of a sequence is never computed, so it needs no place.
        num_tokens = min(len(request.token_ids) + 1, request.max_total_tokens - 1)
        return self.num_missing(request, num_tokens)

    def has_free_for(self, request: Request) -> bool:
        """Whether a slot, and blocks for all that is known of a new request, are free."""
        num_blocks = self.blocks.num_needed(len(request.token_ids) + 1)
        return num_blocks <= self.blocks.num_free and self.slots.num_free > 0

    def lacks_blocks_for(self, requests: Collection[Request]) -> bool:
        """Whether slots or blocks are too few for all these at once, were nobody else there."""
        num_blocks = sum(self.blocks.num_needed(len(each.token_ids) + 1) for each in requests)
        return num_blocks > self.blocks.num_blocks or len(requests) > self.slots.num_slots

    def hold_prefix(self, request: Request) -> None:
        """Give a waiting request the blocks that the prefix cache knows for it."""
        matched = self._match_prefix(request)
        self.blocks.share(matched)
        request.block_ids = matched

    def num_cached(self, request: Request) -> int:
        """Tokens of a request that is not running whose KV the prefix cache holds now."""
        return len(self._match_prefix(request)) * self.block_size

    def _match_prefix(self, request: Request) -> list[int]:
        if not self._prefix_caching:
            return []
        # The last known token is always computed: its output is what the next token is drawn from.
        num_blocks = (len(request.token_ids) - 1) // self.block_size
        hashes = request.block_hashes
        extend_block_hashes(hashes, request.token_ids, num_blocks, self.block_size, request.tenant)
        return self.blocks.match_prefix(hashes[:num_blocks])

    def enter(self, request: Request) -> None:
        """Take a slot, and count the tokens of the held prefix as computed."""
        request.slot = self.slots.take()
        num_cached = len(request.block_ids) * self.block_size
        request.num_computed = request.num_scheduled = num_cached
        if request.num_preemptions == 0:
            request.num_cached_tokens = num_cached
            self.num_cached_prompt_tokens += num_cached

    def enter_from_host(self, request: Request) -> int:
        """Take a slot, and blocks for what is computed; the number of those the cache held."""
        self.hold_prefix(request)
        num_shared = len(request.block_ids)
        self.extend(request, self.num_missing(request, request.num_computed))
        request.slot = self.slots.take()
        return num_shared

    def extend(self, request: Request, num_blocks: int) -> tuple[int, ...]:
        """Add free blocks to the table and return them."""
        added = self.blocks.allocate(num_blocks)
        request.block_ids += added
        return tuple(added)

    def shorten(self, request: Request) -> None:
        """Take back the blocks behind what is scheduled."""
        num_kept = self.blocks.num_needed(request.num_scheduled)
        self.blocks.free(request.block_ids[num_kept:])
        del request.block_ids[num_kept:]

    def publish(self, request: Request, start: int) -> None:
        """Make the blocks findable that became full as computed tokens grew from `start`."""
        first, last = start // self.block_size, request.num_computed // self.block_size
        if not self._prefix_caching or first == last:
            return
        extend_block_hashes(
            request.block_hashes, request.token_ids, last, self.block_size, request.tenant
        )
        for index in range(first, last):
            self.blocks.publish(request.block_ids[index], request.block_hashes[index])

    def release(self, request: Request) -> None:
        """Take back whatever the request holds."""
        self.blocks.free(request.block_ids)
        request.block_ids = []
        self.release_slot(request)

    def release_slot(self, request: Request) -> None:
        """Take back the slot, if it has one."""
        if request.slot >= 0:
            self.slots.give_back(request.slot)
            request.slot = -1

    def check_integrity(self, holders: Collection[Request]) -> None:
        """Raise IntegrityError unless `holders` own exactly what is lent out."""
        self.slots.check_integrity([request.slot for request in holders if request.slot >= 0])
        self.blocks.check_integrity(request.block_ids for request in holders)
        for request in holders:
            is_away = request.status is Status.OFFLOADED and not request.is_in_use
            num_blocks = 0 if is_away else self.blocks.num_needed(request.num_scheduled)
            require_equal(f"blocks of {request.request_id}", len(request.block_ids), num_blocks)
            if request.status is Status.RUNNING:
                require_equal(f"slot of {request.request_id}", request.slot >= 0, True)
