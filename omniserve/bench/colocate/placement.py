"""The share of the machine that a server is started with."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

LEAST_NICE = 19
"""The kernel's lowest priority: of a core that others want, next to nothing."""
_TRIES, _AGAIN_S = 50, 0.05


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

    async def tell_autogroup(self, process_id: int) -> None:
        """A kernel that groups processes by session weighs these groups, whatever the processes in
        them are told. From all but root it hears of one group in a tenth of a second."""
        for _ in range(_TRIES if self.nice else 0):
            try:
                Path(f"/proc/{process_id}/autogroup").write_text(str(self.nice))
            except BlockingIOError:
                await asyncio.sleep(_AGAIN_S)
            except OSError:
                # A kernel that knows no such groups, or a process that has ended.
                return
            else:
                return


ANYWHERE = Placement()
"""As this process is placed."""
