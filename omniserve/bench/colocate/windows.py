"""Windows on disk, and how long those that are missing will take."""

import time
from collections.abc import Callable
from pathlib import Path

from omniserve.bench.colocate.plan import WindowKey
from omniserve.bench.run_files import RUN_FILE, load_run, save_run
from omniserve.bench.run_record import RunRecord


class Windows:
    """Every finished window is saved at once, so that a comparison can go on where it stopped."""

    def __init__(self, directory: Path, num_expected: int, say: Callable[[str], None]) -> None:
        """`num_expected` in all, those on disk included."""
        self._directory = directory
        self._num_left = num_expected
        self._say = say
        self._started_s = time.monotonic()
        self._num_measured = 0

    def load(self, key: WindowKey) -> RunRecord | None:
        """None where it has not been measured yet. Raises RunFileError."""
        directory = self._directory / key.path
        if not (directory / RUN_FILE).exists():
            return None
        self._num_left -= 1
        return load_run(directory)

    def begin(self, title: str) -> None:
        """Tells that a window is measured now, and for how long there will be others."""
        self._say(f"{title}{self._outlook()}")

    def save(self, key: WindowKey, record: RunRecord) -> None:
        save_run(record, self._directory / key.path)
        self._num_left -= 1
        self._num_measured += 1

    def _outlook(self) -> str:
        if not self._num_measured:
            return ""
        # Starts of servers are in the mean, as they will be in what comes.
        mean_s = (time.monotonic() - self._started_s) / self._num_measured
        return f" ({self._num_left} windows left, about {mean_s * self._num_left / 60:.0f} min)"
