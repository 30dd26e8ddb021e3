"""When host attention may have the cores that the device would use otherwise."""

from math import inf

_QUIET_S = 0.5
"""So long nobody must have been offloaded before the device takes the cores back: to move them
takes about half a millisecond."""
_TOO_MUCH, _LITTLE = 0.85, 0.6
"""Pressure at which the host must rest, and below which it may go on."""
_CALM_S = 0.3
"""So long the pressure must have been little before it goes on."""


class HostCoresRule:
    """The host's while requests are there, unless latency-sensitive ones need the whole device.

    The pressure is the larger of two parts, both reckoned for a device without the host's cores:
    the part of its time that latency-sensitive requests need, and the part of their time to the
    first token that those who are here will have waited.
    """

    def __init__(self) -> None:
        self.is_resting = False
        """Whether requests on the host must stay where they are."""
        self.are_taken = False
        """Whether the host has the cores."""
        self._active_s = -inf
        self._pressed_s = -inf

    def update(self, now_s: float, *, num_offloaded: int, pressure: float) -> bool:
        """Whether the host has the cores from now on; to be asked once a step."""
        if pressure >= _TOO_MUCH:
            self.is_resting = True
        if pressure >= _LITTLE:
            self._pressed_s = now_s
        elif now_s - self._pressed_s >= _CALM_S:
            self.is_resting = False
        if num_offloaded:
            self._active_s = now_s
        is_active = now_s - self._active_s < _QUIET_S
        # What the host has begun it ends on a core that it shares, which takes some milliseconds:
        # a long prompt that waited for that, or ran without the core, would lose more.
        self.are_taken = is_active and not self.is_resting
        return self.are_taken
