"""Moves KV memory between models as their load changes, within one budget for all."""

import time
from collections.abc import Callable
from math import inf

from omniserve.engine.kv_budget import KvBudget
from omniserve.engine.kv_budget_terms import DEVICE_KV, KvBudgetTerms
from omniserve.engine.kv_member import KvHolder, KvMember
from omniserve.settings import KvShareStats, ModelSettings
from scheduler.kv_grants import EVEN_SHARE, KvClaims, share_out

_SLICE_S = 1e-3
"""Longest time in which memory is given back before a step, about a layer's..."""
_URGENT_SLICE_S = 5e-3
"""...and where latency-sensitive requests wait for it."""
_PIECE_BYTES = 1 << 20
_PATIENT_PERIOD_S = 0.01
"""Best-effort work alone moves memory no more often."""
_IDLE_PERIOD_S = 0.5
_HASTY_PAUSE_S = 2e-3
"""Of a step's layers, between two slices amid them; at least..."""
_HASTY_PAUSES = 2
"""...so many times what the one before took."""

DropStanding = Callable[[str], bool]
"""Asked, where latency-sensitive requests wait for memory, to drop best-effort steps of a model
that stand between two layers and hold it; says whether there was one."""


def drop_nothing(model: str) -> bool:
    """No step ever stands."""
    return False


class KvArbiter:
    """Asked before every step; in most it has nothing to do.

    Memory is taken from one model before another has it, so what all have together is never more
    than the budget.
    """

    def __init__(
        self,
        num_bytes: int | None,
        clock: Callable[[], float] = time.monotonic,
        terms: KvBudgetTerms = DEVICE_KV,
        patience_s: float = inf,
    ) -> None:
        """Without a budget every model has all of its pool, and nothing moves.

        `patience_s`: so long best-effort requests of a model are short of memory, before it is at
        the cost of those of other models that run and have more.
        """
        self.budget = None if num_bytes is None else KvBudget(num_bytes, terms)
        self._clock = clock
        self._patience_s = patience_s
        self._members: dict[str, KvMember] = {}
        self._departing_bytes: dict[str, int] = {}
        self._resting: set[str] = set()
        """Models that are asleep: they have nothing, and their floors stay theirs."""
        self._is_owed = False
        self._next_patient_s = self._next_idle_s = self._next_hasty_s = 0.0

    def expect(self, *models: ModelSettings) -> None:
        """Keeps room for models that are about to be loaded; one that rests has it already.

        Raises:
            ConfigError: it is not there.
        """
        if self.budget is not None:
            self.budget.reserve(tuple(each for each in models if each.name not in self._resting))

    def expect_later(self, model: ModelSettings, longest_bytes: int) -> None:
        """Keeps room for a model that is asleep, and for its longest request; raises as `expect`
        does."""
        if self.budget is None:
            return
        self.budget.reserve((model,))
        if self.budget.has_place(model.name):
            self.budget.settle(model.name, 1, longest_bytes)
            self._resting.add(model.name)

    def add(
        self, model: str, holder: KvHolder, block_bytes: int, num_blocks: int, num_longest: int
    ) -> None:
        """An expected model is there; it has no blocks yet, may have `num_blocks` at most, and
        needs `num_longest` for the longest request that it takes."""
        if self.budget is None:
            return
        member = KvMember(holder, block_bytes, num_blocks * block_bytes, self._clock())
        unit_bytes = member.unit_bytes
        longest_bytes = -(-num_longest * block_bytes // unit_bytes) * unit_bytes
        self.budget.settle(model, unit_bytes, longest_bytes)
        self._resting.discard(model)
        self._members[model] = member

    def retire(self, model: str) -> None:
        """The model is leaving with its pool: nothing moves there any more, and nobody has what it
        had before `remove`."""
        member = self._members.pop(model, None)
        if member is not None:
            self._departing_bytes[model] = member.granted_bytes

    def rest(self, model: str) -> None:
        """The model, which was retired, is gone with its pool and will come back: others may have
        what it had, and nobody keeps its floor from it then."""
        self._departing_bytes.pop(model, None)
        if self.budget is not None and self.budget.has_place(model):
            self._resting.add(model)

    def remove(self, model: str) -> None:
        """The model is gone with its pool, or could not be loaded."""
        self._members.pop(model, None)
        self._departing_bytes.pop(model, None)
        self._resting.discard(model)
        if self.budget is not None:
            self.budget.release(model)

    def reach_bytes(self, model: str) -> int | None:
        """What this model can have at most without floors of others; None without a budget."""
        if self.budget is None:
            return None
        return self.budget.reach_bytes(model, self._members[model].unit_bytes)

    def balance(self, drop_standing: DropStanding = drop_nothing) -> None:
        """Before a step: moves what should be moved now, as far as there is time for it."""
        if self.budget is None:
            return
        now_s = self._clock()
        memories = [member.holder.memory for member in self._members.values()]
        is_urgent = any(memory.is_urgent_work_short for memory in memories)
        if not (is_urgent or self._is_owed):
            is_patient = any(memory.is_patient_work_short for memory in memories)
            if now_s < (self._next_patient_s if is_patient else self._next_idle_s):
                return
        self._next_patient_s = now_s + _PATIENT_PERIOD_S
        self._next_idle_s = now_s + _IDLE_PERIOD_S
        self._move(now_s, _URGENT_SLICE_S if is_urgent else _SLICE_S, drop_standing)

    def hasten(self, drop_standing: DropStanding = drop_nothing) -> None:
        """Between two layers of a step: moves what latency-sensitive requests wait for, which takes
        no more than about a third of the time."""
        if self.budget is None:
            return
        memories = [member.holder.memory for member in self._members.values()]
        if not any(memory.is_urgent_work_stuck for memory in memories):
            return
        now_s = self._clock()
        if now_s < self._next_hasty_s:
            return
        is_stuck = self._move(now_s, _SLICE_S, drop_standing)
        done_s = self._clock()
        pause_s = _HASTY_PAUSE_S if is_stuck else _PATIENT_PERIOD_S
        self._next_hasty_s = done_s + max(pause_s, _HASTY_PAUSES * (done_s - now_s))

    def _move(self, now_s: float, slice_s: float, drop_standing: DropStanding) -> bool:
        """Whether latency-sensitive requests lacked memory that their model is to have."""
        assert self.budget is not None
        is_overdue = self._is_overdue(now_s)
        claims = {
            name: self._claims(name, member, now_s, is_overdue)
            for name, member in self._members.items()
        }
        claims |= {name: _resting_claims(self.budget.floor_bytes(name)) for name in self._resting}
        # One that leaves may have had others' floors as well: these are owed until it has gone.
        left_bytes = self.budget.num_bytes - sum(self._departing_bytes.values())
        floors_bytes = sum(claim.floor for claim in claims.values())
        targets = share_out(max(left_bytes, floors_bytes), claims)
        for name, member in self._members.items():
            if targets[name] > member.granted_bytes:
                member.book.note_lack(now_s)
        is_stuck = any(
            member.holder.memory.is_urgent_work_stuck and targets[name] > member.granted_bytes
            for name, member in self._members.items()
        )
        # Reckoning takes time as well: with many requests it may be more than the slice.
        until_s = self._clock() + slice_s
        self._shrink(targets, until_s, drop_standing if is_stuck else drop_nothing)
        self._grow(targets)
        # What there was no time for is gone on with before the next step.
        self._is_owed |= self._clock() >= until_s
        return is_stuck

    def stats(self, model: str) -> KvShareStats | None:
        """None without a budget."""
        member = self._members.get(model)
        if self.budget is None or member is None:
            return None
        return member.book.stats(self.budget.floor_bytes(model), self._clock())

    def check_integrity(self) -> None:
        """Raises an AssertionError where models have more than there is."""
        if self.budget is None:
            return
        granted = self._granted_bytes()
        if sum(granted.values()) > self.budget.num_bytes:
            raise AssertionError(f"granted {granted} of {self.budget.num_bytes} bytes")

    def _granted_bytes(self) -> dict[str, int]:
        granted = {name: member.granted_bytes for name, member in self._members.items()}
        return {**granted, **self._departing_bytes}

    def _is_overdue(self, now_s: float) -> bool:
        """Whether some model has been short of memory for too long that has clearly less than
        another one."""
        assert self.budget is not None
        members = self._members.values()
        for member in members:
            if not member.holder.memory.is_patient_work_short:
                member.short_since_s = inf
            elif member.short_since_s == inf:
                member.short_since_s = now_s
        most_bytes = max((member.granted_bytes for member in members), default=0)
        least_bytes = most_bytes - self.budget.num_bytes // EVEN_SHARE
        return any(
            now_s - member.short_since_s > self._patience_s
            and member.granted_bytes < min(least_bytes, member.most_bytes)
            for member in members
        )

    def _claims(self, model: str, member: KvMember, now_s: float, is_overdue: bool) -> KvClaims:
        """Where it is overdue, what best-effort requests hold is shared out as what they lack is:
        whoever has least goes first."""
        assert self.budget is not None
        memory, block_bytes = member.holder.memory, member.block_bytes
        if memory.is_in_use:
            member.last_use_s = now_s
        demand = memory.demand()
        shared_anew = demand.patient_running if is_overdue else 0
        return KvClaims(
            unit=member.unit_bytes,
            most=member.most_bytes,
            floor=self.budget.floor_bytes(model),
            granted=demand.granted * block_bytes,
            cached=demand.cached * block_bytes,
            urgent_running=demand.urgent_running * block_bytes,
            urgent_waiting=demand.urgent_waiting * block_bytes,
            patient_running=(demand.patient_running - shared_anew) * block_bytes,
            patient_waiting=(demand.patient_waiting + shared_anew) * block_bytes,
            urgent_since_s=demand.urgent_since_s,
            patient_since_s=demand.patient_since_s,
            idle_s=now_s - member.last_use_s,
        )

    def _shrink(
        self,
        targets: dict[str, int],
        until_s: float,
        drop_standing: DropStanding,
    ) -> None:
        """Takes from those that have too much; what requests hold they are told to let go."""
        for name, member in self._members.items():
            num_extents = (member.granted_bytes - targets[name]) // member.unit_bytes
            num_taken = self._take(member, num_extents, until_s)
            if num_taken < num_extents and self._clock() < until_s:
                _give_way(member, num_extents - num_taken)
                was_dropped = drop_standing(name)
                num_taken += self._take(member, num_extents - num_taken, until_s)
                if was_dropped and num_taken < num_extents and self._clock() < until_s:
                    # Now those that were in its step can let go, of what is still held.
                    _give_way(member, num_extents - num_taken)
                    num_taken += self._take(member, num_extents - num_taken, until_s)
            if member.is_yielding and num_taken >= num_extents:
                member.holder.give_way(0)
                member.is_yielding = False
            if num_taken:
                member.book.note_out(num_taken * member.unit_bytes, self._clock())

    def _take(self, member: KvMember, num_extents: int, until_s: float) -> int:
        """Gives back so many extents, as far as there is time and nobody holds them."""
        at_once = max(1, _PIECE_BYTES // member.unit_bytes)
        num_taken = 0
        while num_taken < num_extents and self._clock() < until_s:
            extents = member.holder.memory.withdraw(min(at_once, num_extents - num_taken))
            if not extents:
                break
            member.holder.give_back_extents(extents)
            num_taken += len(extents)
        return num_taken

    def _grow(self, targets: dict[str, int]) -> None:
        """Gives what nobody has to those that are to have more, the more pressing first."""
        assert self.budget is not None
        spare = self.budget.num_bytes - sum(self._granted_bytes().values())
        self._is_owed = False
        for name, member in sorted(self._members.items(), key=_is_patient):
            num_extents = min(targets[name] - member.granted_bytes, spare) // member.unit_bytes
            if num_extents > 0:
                granted_bytes = member.granted_bytes
                extents = member.holder.memory.grant(num_extents)
                member.holder.reserve_extents(extents)
                num_bytes = member.granted_bytes - granted_bytes
                spare -= num_bytes
                if num_bytes:
                    member.book.note_in(num_bytes, self._clock())
            if member.granted_bytes < targets[name]:
                self._is_owed = True
            else:
                member.book.note_plenty(self._clock())
        for name, member in self._members.items():
            # A prompt that comes has nothing of others' floors.
            reach = min(member.most_bytes, self.budget.reach_bytes(name, member.unit_bytes))
            num_bytes = max(0, min(spare, reach - member.granted_bytes))
            member.holder.memory.note_spare(num_bytes // member.block_bytes)


def _resting_claims(floor_bytes: int) -> KvClaims:
    """It wants nothing; its floor is lent, as that of a model without work."""
    return KvClaims(
        unit=1,
        most=0,
        floor=floor_bytes,
        granted=0,
        cached=0,
        urgent_running=0,
        urgent_waiting=0,
        patient_running=0,
        patient_waiting=0,
    )


def _give_way(member: KvMember, num_extents: int) -> None:
    """What requests hold of so many extents they are to let go."""
    member.holder.give_way(num_extents)
    member.is_yielding = True


def _is_patient(item: tuple[str, KvMember]) -> bool:
    _, member = item
    return not member.holder.memory.is_urgent_work_short
