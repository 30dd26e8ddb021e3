"""When models that nobody needs go to sleep, by what their tiers say."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NoReturn

from omniserve.config_tier import TierConfig
from omniserve.model_life.sleeps import ModelSleeps
from omniserve.model_life.standing import ModelStanding
from omniserve.service import GenerationService

LOOK_EVERY_S = 1.0
_LEAST_PAUSE_S = 0.02


def due_s(
    last_uses: Mapping[str, float], since_s: float, default_tier: str, tiers: Sequence[TierConfig]
) -> float | None:
    """When a model that has no request is to fall asleep; None: it stays awake.

    Every tier that used it has a say, as long as the tier exists. One that nobody has asked for
    counts from `since_s`, when it began to serve, as if its default tier had used it then.
    """
    after_s = {tier.name: tier.sleep_after_s for tier in tiers}
    uses = {name: at_s for name, at_s in last_uses.items() if name in after_s}
    latest_s = since_s
    for name, at_s in (uses or {default_tier: since_s}).items():
        patience_s = after_s[name]
        if patience_s is None:
            return None
        latest_s = max(latest_s, at_s + patience_s)
    return latest_s


class IdleWatch:
    """Puts to sleep what is due, of one daemon."""

    def __init__(self, service: GenerationService, sleeps: ModelSleeps) -> None:
        self._service = service
        self._sleeps = sleeps
        self._ready_since_s = service.clock()
        """Since when there has been an engine, as far as somebody looked."""

    async def run(self) -> NoReturn:
        while True:
            await asyncio.sleep(self.look())

    def look(self) -> float:
        """Begins the sleep of every model that is due, and says after how many seconds another
        look may find one."""
        service = self._service
        now_s, pause_s = service.clock(), LOOK_EVERY_S
        if not service.engine.ready:
            self._ready_since_s = now_s
        if service.draining or not service.engine.ready:
            return pause_s
        for standing in service.roster:
            if (at_s := self._due_s(standing)) is None:
                continue
            if at_s <= now_s:
                self._sleeps.begin(standing)
            else:
                pause_s = min(pause_s, at_s - now_s)
        return max(_LEAST_PAUSE_S, pause_s)

    def _due_s(self, standing: ModelStanding) -> float | None:
        service, name = self._service, standing.name
        if standing.state != "serving" or standing.is_pinned or service.model_requests.count(name):
            return None
        return due_s(
            service.model_requests.last_uses(name),
            max(standing.since_s, self._ready_since_s),
            service.tiers.default(name).name,
            service.tiers.tiers,
        )
