"""The share of the machine that a server is started with."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

LEAST_NICE = 19
"""The kernel's lowest priority: of a core that others want, next to nothing."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Cores and priority of a server and of all that it starts."""

    cores: tuple[int, ...] = ()
    """None named: those of this process."""
    nice: int = 0
    """Added to this process's own."""

    def take(self) -> None:
        """Of the process that calls it, between fork and exec."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if self.nice:
            os.nice(self.nice)

    def tell_autogroup(self, process_id: int) -> None:
        """A kernel that groups processes by session weighs these groups, whatever the processes in
        them are told."""
        if self.nice:
            with contextlib.suppress(OSError):
                Path(f"/proc/{process_id}/autogroup").write_text(str(self.nice))


ANYWHERE = Placement()
"""As this process is placed."""
