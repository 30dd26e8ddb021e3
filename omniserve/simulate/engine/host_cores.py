"""Whether host attention has its cores at a moment: the rule of the engine's core split."""

from omniserve.simulate.clock import Clock

_QUIET_S = 0.5
"""As in `omniserve.piggyback.core_split`, which needs torch."""


class HostCores:
    """The host's from the first offload on, until nobody was offloaded for a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._active_s = float("-inf")

    def update(self, num_offloaded: int) -> None:
        """To be called once a step."""
        if num_offloaded:
            self._active_s = self._clock.now_s

    @property
    def are_taken(self) -> bool:
        return self._clock.now_s - self._active_s < _QUIET_S
