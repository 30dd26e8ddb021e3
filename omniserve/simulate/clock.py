"""Simulated time."""


class Clock:
    """The time that has come; only ever set forward, by whoever drives the simulation."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s
