"""What can happen to a request, and why: the words of its timeline."""

from dataclasses import dataclass
from enum import Enum


class Event(Enum):
    """What happened to a request."""

    QUEUED = "queued"
    REFUSED = "refused"
    WAITS = "waits"
    """From the entry's time to its last time; while it runs, it gets no rows meanwhile."""
    ADMITTED = "admitted"
    COMPUTED = "computed"
    """Tokens of its prompt, or those it had before it was preempted, joined a step."""
    FIRST_TOKEN = "first token"
    STEP_DROPPED = "step dropped"
    """Amid its layers; the tokens that it had in it are computed again."""
    PREEMPTED = "preempted"
    OFFLOADED = "offloaded"
    RETURNED = "returned"
    DEMOTED = "demoted"
    TIER_CHANGED = "tier changed"
    FINISHED = "finished"
    ABORTED = "aborted"
    LEFT_OUT = "left out"
    """Entries that a long timeline does not keep."""


class Reason(Enum):
    """Why; most events need none."""

    NONE = ""
    QUEUE = "others are before it"
    SHARE = "other tenants have had less"
    URGENCY = "others are due before it"
    RUNNING = "those that go first lack room themselves"
    TIME = "the step has no time left"
    TOKENS = "the step has no tokens left"
    MEMORY = "no room for its KV"
    EXPECTED_MEMORY = "its KV is not expected to find room until it ends"
    SLOTS = "as many requests run as may"
    IN_FLIGHT = "a step under way uses what it needs"
    LANDING = "what it needs is being copied to the host"
    LANES = "no more rows from the host may join the step"
    LANES_CLOSED = "rows from the host may not join now"
    HOST_MEMORY = "the host has no room for its KV"
    HOST_LOST = "the host lost its KV"
    OBJECTIVE = "its first token would be late"
    QUEUE_BOUND = "as many of its tier wait as may"
    DEADLINE = "its deadline"
    LENGTH = "it has had the tokens that its tier gives in time"
    URGENT = "a latency-sensitive request needs its room"
    OLDER = "an older request needs its room"
    NEWCOMER = "a request that waits needs its room"
    OTHER_MODEL = "another model needs its room"
    RESIDENT_LIMIT = "no more decodes may stay on the device"
    ROOM = "the device has had room for a while"
    OFFLOADING_OFF = "work on the host is off"
    TIERS_CHANGED = "the tiers were changed"


@dataclass(slots=True)
class Entry:
    """One event; equal ones in a row, or that take turns with few others, are one entry."""

    at_s: float
    event: Event
    reason: Reason
    detail: str
    """Of the last of them."""
    last_s: float
    """When it happened last; of waiting, when it ended."""
    times: int = 1
