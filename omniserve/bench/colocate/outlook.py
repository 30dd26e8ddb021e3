"""How much of a comparison is left."""

START_S = 120.0
"""Starting the servers of a scene, until it has been seen how long that takes."""


class Outlook:
    """Counts what is done; minutes are a guess that gets better."""

    def __init__(self, num_windows: int, num_scenes: int, window_s: float) -> None:
        """`window_s`: what one is expected to take, waiting included."""
        self._num_windows = num_windows
        self._num_scenes = num_scenes
        self._window_s = window_s
        self._start_s = START_S
        self._measured_s: list[float] = []

    def started(self, took_s: float) -> None:
        """The servers of a scene are up."""
        self._start_s = took_s

    def measured(self, took_s: float) -> None:
        """A window has been measured."""
        self._num_windows -= 1
        self._measured_s.append(took_s)

    def skipped(self, num_windows: int) -> None:
        """They were there already, or are not needed."""
        self._num_windows -= num_windows

    def left_scene(self) -> None:
        self._num_scenes -= 1

    @property
    def text(self) -> str:
        """With the scene and the window that are being measured."""
        taken = self._measured_s
        window_s = sum(taken) / len(taken) if taken else self._window_s
        left_s = self._num_windows * window_s + (self._num_scenes - 1) * self._start_s
        return f"{self._num_windows} windows left, about {max(left_s, 0) / 60:.0f} min"
