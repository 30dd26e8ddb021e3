"""Whether latency-sensitive requests wait for nothing, worked out from an executor's tables."""

from collections.abc import Mapping, Sequence

from scheduler_clients import Client

from scheduler import SchedulerSettings, StepPlan
from scheduler.request import Status


class RoomBefore:
    """What latency-sensitive work could have had at the moment when a plan was made."""

    def __init__(
        self,
        settings: SchedulerSettings,
        clients: Sequence[Client],
        tables: Mapping[int, Sequence[int]],
        copied_tables: Mapping[str, Sequence[int]],
    ) -> None:
        """`copied_tables` of device blocks are held for copies to the host that are under way."""
        self.settings = settings
        self.clients = sorted(clients, key=lambda client: client.order)
        self.tables = tables
        self.copied_tables = copied_tables
        holders = [client for client in clients if client.slot is not None]
        in_use = [c for c in holders if c.num_in_flight or c.is_swapping_in]
        self.idle = [client for client in holders if client not in in_use]
        # If best-effort requests yield that are idle, and if those in flight do so as well.
        self.now = self._count_free([c for c in holders if c.is_latency_sensitive or c in in_use])
        self.soon = self._count_free(
            [c for c in holders if (c.is_latency_sensitive and not c.ended) or c.is_swapping_in]
        )

    def check(self, plan: StepPlan | None, withheld: set[str]) -> None:
        """Fail if the oldest latency-sensitive request without rows could have been given some.

        Counts are on the safe side: a prefix from the cache may need less than assumed here.
        """
        ls_rows = [rows for rows in plan.rows if rows.request_id.startswith("ls")] if plan else []
        if sum(rows.num_tokens for rows in ls_rows) >= self.settings.max_step_tokens:
            return
        if plan and any(request_id.startswith("ls") for request_id in plan.preempted_ids):
            return
        waiting = self._find_oldest_without({rows.request_id for rows in ls_rows} | withheld)
        if waiting is None:
            return
        num_blocks = self._num_needed(waiting) + sum(len(rows.new_block_ids) for rows in ls_rows)
        num_slots = sum(rows.first_new_block == 0 for rows in ls_rows) + (waiting.slot is None)
        if self._will_land(waiting):
            return
        in_vain = num_blocks <= self.now[0] and num_slots <= self.now[1]
        assert not in_vain, f"{waiting.name} waits in vain"
        soon = num_blocks <= self.soon[0] and num_slots <= self.soon[1]
        if soon and plan is not None:
            assert not plan.has_best_effort, f"BE keeps in flight what {waiting.name} waits for"

    def check_victims(self, preempted: Sequence[Client], gainers: Sequence[Client]) -> None:
        """Fail unless those who were preempted are the right ones."""
        for victim in preempted:
            assert victim in self.idle and not victim.ended, f"{victim.name} preempted in flight"
            assert any(gainer.comes_before(victim) for gainer in gainers)
            for spared in self.idle:
                if spared.ended or spared.slot is None or spared in preempted:
                    continue
                if spared.request.status is Status.OFFLOADED:
                    # It lets go of its memory as well, once the copy to the host has landed.
                    continue
                assert spared.comes_before(victim), f"{spared.name} spared, {victim.name} not"
            if victim.is_latency_sensitive:
                running_be = [c for c in self.clients if c.is_running and c.name.startswith("be")]
                if self.settings.piggyback is not None:
                    running_be = [client for client in running_be if not client.may_depart]
                assert not {c.name for c in running_be} - {c.name for c in preempted}

    def _count_free(self, kept: Sequence[Client]) -> tuple[int, int]:
        """Free blocks and slots if, besides copies under way, only these keep theirs."""
        slots = [client.slot for client in kept if client.slot is not None]
        held = {block_id for slot in slots for block_id in self.tables[slot]}
        held.update(*self.copied_tables.values())
        return self.settings.num_blocks - len(held), self.settings.max_running_requests - len(slots)

    def _will_land(self, waiting: Client) -> bool:
        """Whether copies to the host free enough, those of decodes now in flight among them.

        Tables and copies are those after the plan.
        """
        if self.settings.piggyback is None:
            return False
        if self.settings.prefix_caching and self.copied_tables:
            # What a cached prefix spares it is not known here.
            return True
        kept = [c for c in self.clients if c.slot is not None and not c.may_depart]
        slots = [client.slot for client in kept if client.slot is not None]
        held = {block_id for slot in slots for block_id in self.tables[slot]}
        has_slot = waiting.slot is not None or len(slots) < self.settings.max_running_requests
        return has_slot and self._num_needed(waiting) <= self.settings.num_blocks - len(held)

    def _find_oldest_without(self, names: set[str]) -> Client | None:
        for client in self.clients:
            if client.is_latency_sensitive and not client.ended and client.name not in names:
                if client.slot is None or client.is_plannable:
                    return client
        return None

    def _num_needed(self, client: Client) -> int:
        if client.slot is not None:
            num_tokens = min(client.num_unscheduled, self.settings.max_step_tokens)
            return self._num_missing(client, client.scheduled + num_tokens)
        # All known tokens and one more, where there will be one.
        return self._num_missing(client, min(client.known + 1, client.request.max_total_tokens - 1))

    def _num_missing(self, client: Client, num_tokens: int) -> int:
        held = 0 if client.slot is None else len(self.tables[client.slot])
        return -(-num_tokens // self.settings.block_size) - held
