"""An engine with a host, driven by hand and described as text."""

from collections.abc import Iterable
from dataclasses import replace

from builders_scheduler import ROOMY, HostBlockPool, describe, make_request, results_of

from scheduler import Copy, LaneEntry, Offload, PiggybackLimits, Request, Scheduler, StepPlan

LIMITS = PiggybackLimits(
    num_lanes=8, max_lane_rows=8, max_lane_rows_beside_ls=4, return_patience=1000
)


class HostDriver:
    """What was decided comes back as text: `>id` is offloaded, `<id` returns, `id^n` enters at n.

    Copies, lane rows and released lanes stay as they are until the test says that they got done.
    """

    def __init__(
        self, *, num_host_blocks: int = 64, limits: PiggybackLimits = LIMITS, **changes: int
    ) -> None:
        self.blocks = HostBlockPool(num_host_blocks)
        settings = replace(ROOMY, piggyback=limits, **changes)  # type: ignore[arg-type]
        self.scheduler = Scheduler(settings, self.blocks)
        self.requests: dict[str, Request] = {}
        self.copies: dict[str, Copy] = {}
        """Decided so far; kept when they landed."""
        self.entries: dict[str, LaneEntry] = {}
        """The last one of each request."""
        self.plans: list[StepPlan] = []

    def add(self, **prompts: int | Iterable[int]) -> None:
        """Requests by name, with their prompts or the lengths of these; they get 16 tokens."""
        for name, prompt in prompts.items():
            length_or_tokens = prompt if isinstance(prompt, int) else list(prompt)
            self.requests[name] = make_request(name, length_or_tokens)
            self.scheduler.add(self.requests[name])

    def schedule(
        self,
        *,
        latency_sensitive_only: bool = False,
        best_effort_tokens: int | None = None,
        num_ready: int = 0,
    ) -> str:
        """Ask for a plan, which then is in flight."""
        plan = self.scheduler.schedule(
            latency_sensitive_only=latency_sensitive_only,
            best_effort_tokens=best_effort_tokens,
            num_ready_lane_rows=num_ready,
        )
        self.scheduler.check_integrity()
        words = ["nothing"]
        if plan is not None:
            self.plans.append(plan)
            self.entries |= {entry.request_id: entry for entry in plan.lane_entries}
            words = [describe(plan)] if plan.rows else []
            words += [f"{entry.request_id}^{entry.position}" for entry in plan.lane_entries]
        for copy in self.scheduler.take_copies():
            self.copies[copy.request_id] = copy
            words.append(f"{'>' if isinstance(copy, Offload) else '<'}{copy.request_id}")
        return " ".join(words)

    def complete(self, *lanes: str, finished: Iterable[str] = ()) -> list[str]:
        """The oldest plan comes back, with tokens of these lanes; who finished with it."""
        plan = self.plans.pop(0)
        result = results_of(plan, finished=finished)
        result = replace(result, lane_sampled=dict.fromkeys(lanes, 7))
        ended = self.scheduler.complete(plan, result)
        self.scheduler.check_integrity()
        return [request.request_id for request in ended]

    def step(self, *lanes: str) -> str:
        """One plan, and its completion with tokens of these lanes."""
        text = self.schedule()
        if self.plans:
            self.complete(*lanes)
        return text

    def land(self, *names: str) -> None:
        for name in names:
            self.scheduler.copy_landed(name)
            self.scheduler.check_integrity()

    def quieten(self) -> tuple[int, ...]:
        """All lanes that were released become quiet."""
        lanes = self.scheduler.take_released_lanes()
        for lane in lanes:
            self.scheduler.lane_is_quiet(lane)
            self.scheduler.check_integrity()
        return lanes


def make_hosting_driver(*names: str, num_host_blocks: int = 64, **changes: int) -> HostDriver:
    """All best-effort decodes go to the host; these, with prompts of 4 tokens, are there."""
    limits = replace(LIMITS, max_resident_decodes=0)
    driver = HostDriver(num_host_blocks=num_host_blocks, limits=limits, **changes)
    driver.add(**dict.fromkeys(names, 4))
    driver.step()
    driver.schedule()
    driver.land(*names)
    return driver
