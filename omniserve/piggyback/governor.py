"""Turns offloading off where the device alone serves best-effort work faster."""

import time
from collections.abc import Callable
from typing import Protocol

from omniserve.settings import PiggybackSettings
from scheduler import Scheduler
from scheduler.offload_rule import HostSpeed, Load, is_worth_offloading

_PERIOD_S = 0.25


class SpeedLearner(Protocol):
    """A speed that is being measured, piece by piece."""

    @property
    def result(self) -> HostSpeed | None:
        """None until all is measured."""

    def advance(self) -> None:
        """Measures a piece."""


class Governor:
    """Asks the rule now and then, with what the scheduler knows of the requests."""

    def __init__(
        self,
        scheduler: Scheduler,
        speed: HostSpeed | None,
        settings: PiggybackSettings,
        num_layers: int,
        kv_bytes_per_token: int,
        clock: Callable[[], float] = time.monotonic,
        measurement: SpeedLearner | None = None,
    ) -> None:
        """Without a speed nothing is offloaded until `learn` has got one from `measurement`."""
        self._measurement = measurement
        self._scheduler = scheduler
        self.speed = speed
        self._settings = settings
        self._num_layers = num_layers
        self._kv_bytes_per_token = kv_bytes_per_token
        self._clock = clock
        self._allows = False
        self._next_s = 0.0

    def follow(self, scheduler: Scheduler) -> None:
        """From now on it is this one whose requests count."""
        self._scheduler = scheduler
        self._allows, self._next_s = False, 0.0

    def learn(self) -> None:
        """Measures a piece of what is not known yet: takes as long as a layer."""
        if self._measurement is not None:
            self._measurement.advance()
            self.speed = self._measurement.result
            if self.speed is not None:
                self._measurement = None

    def allows(self) -> bool:
        """Whether requests may be offloaded now; to be asked once a step."""
        if self.speed is None:
            return False
        now_s = self._clock()
        if now_s >= self._next_s:
            self._next_s = now_s + _PERIOD_S
            self._allows = is_worth_offloading(self._load(), self.speed, self._allows)
        return self._allows

    def _load(self) -> Load:
        tokens = self._scheduler.counts.token_load()
        settings = self._scheduler.settings
        num_blocks = self._scheduler.counts.num_granted_blocks
        mean_tokens = tokens.best_effort_tokens / max(1, tokens.num_best_effort)
        blocks_each = max(1.0, mean_tokens / settings.block_size)
        ls_blocks = tokens.running_ls_tokens / settings.block_size
        host_tokens = self._scheduler.counts.num_host_blocks * settings.block_size
        return Load(
            num_ls_rows=tokens.num_running_ls,
            ls_kv_bytes=tokens.running_ls_tokens * self._kv_bytes_per_token,
            num_best_effort=tokens.num_best_effort,
            kv_bytes_per_request=mean_tokens * self._kv_bytes_per_token,
            num_resident=self._num_resident(
                min(
                    num_blocks - ls_blocks,
                    num_blocks * self._settings.max_device_kv_share,
                ),
                blocks_each,
            ),
            num_lanes=min(
                self._settings.max_offloaded_requests, int(host_tokens / max(1.0, mean_tokens))
            ),
            max_lane_rows=(
                self._settings.max_lane_rows_beside_ls
                if tokens.num_running_ls
                else self._settings.max_lane_rows
            ),
            num_layers=self._num_layers,
        )

    def _num_resident(self, num_blocks: float, blocks_each: float) -> int:
        most = self._scheduler.settings.max_running_requests
        if self._settings.max_resident_decodes is not None:
            most = min(most, self._settings.max_resident_decodes)
        return max(0, min(most, int(num_blocks / blocks_each)))
