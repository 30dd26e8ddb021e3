"""Keeps one host attention process alive; a state machine that never waits.

starting -> ready -> ending (killed, not gone yet) -> waiting (to be started again) -> starting
         -> failed, where it died too often; and stopped.
"""

from collections.abc import Callable
from typing import Literal

from cpu_attn.host.child import HostChild, describe_exit

State = Literal["starting", "ready", "ending", "waiting", "failed", "stopped"]

_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 10.0
_HEALTHY_S = 60.0
_LOOKS_PER_STALL = 4
"""A pause between two looks counts as so much of a stall at most: in it, we may have been stopped
ourselves, and the process with us."""


class Supervisor:
    """`spawn` makes a process; `recover` is called each time one is gone for good.

    Must be driven from a thread that lives as long as the process may: with the thread that
    started it, the system ends it.
    """

    def __init__(
        self,
        spawn: Callable[[], HostChild],
        recover: Callable[[], None],
        *,
        stall_timeout_s: float,
        start_timeout_s: float,
        max_restarts: int,
    ) -> None:
        self.state: State = "stopped"
        self.num_restarts = 0
        self.reason = "it was not started"
        """Why there is no process, where there is none."""
        self.child: HostChild | None = None
        self._spawn = spawn
        self._recover = recover
        self._stall_timeout_s = stall_timeout_s
        self._start_timeout_s = start_timeout_s
        self._max_restarts = max_restarts
        self._num_deaths = 0
        self._changed_s = 0.0
        self._looked_s = 0.0
        self._stalled_s = 0.0
        self._progress = -1

    def start(self, now_s: float) -> None:
        self._num_deaths = 0
        self._start_child(now_s)

    def look(self, now_s: float, *, has_work: bool, progress: int) -> State:
        """Notices death and stalls, and goes on to what follows.

        `progress` is a number that changes whenever workers get on with the work that there is.
        """
        if self.state == "waiting" and now_s - self._changed_s >= self._delay_s():
            self.num_restarts += 1
            self._start_child(now_s)
        elif self.child is not None:
            self._look_at(self.child, now_s, has_work, progress)
        self._looked_s = now_s
        return self.state

    def stop(self, grace_s: float) -> None:
        """Ends the process; returns when it is gone.

        Raises HostAttentionDown where it does not end; then nothing is recovered, for it may still
        write, and `stop` may be tried again.
        """
        if self.child is not None:
            self.child.end(grace_s)
            self.child = None
            self._recover()
        self.state = "stopped"
        self.reason = "it was stopped"

    def _look_at(self, child: HostChild, now_s: float, has_work: bool, progress: int) -> None:
        # Of one that is stuck the time before counts, be it killed for that.
        if self.state == "ready" and now_s - self._changed_s - self._stalled_s >= _HEALTHY_S:
            self._num_deaths = 0
        status = child.poll()
        if status is not None:
            self._bury(child, status, now_s)
            return
        if self.state == "starting":
            if child.ready:
                self._enter("ready", now_s)
            elif now_s - self._changed_s > self._start_timeout_s:
                self._kill(child, f"not ready after {self._start_timeout_s:g} s", now_s)
        elif self.state == "ready":
            if not has_work or progress != self._progress:
                self._stalled_s = 0.0
            else:
                step_s = self._stall_timeout_s / _LOOKS_PER_STALL
                self._stalled_s += min(now_s - self._looked_s, step_s)
            self._progress = progress
            if self._stalled_s > self._stall_timeout_s:
                self._kill(child, f"no progress for {self._stall_timeout_s:g} s", now_s)

    def _kill(self, child: HostChild, reason: str, now_s: float) -> None:
        child.kill()
        self.reason = reason
        self._enter("ending", now_s)

    def _bury(self, child: HostChild, status: int, now_s: float) -> None:
        if self.state != "ending":
            self.reason = child.last_words or describe_exit(status)
        child.end(0.0)
        self.child = None
        self._recover()
        self._count_death(now_s)

    def _count_death(self, now_s: float) -> None:
        self._num_deaths += 1
        self._enter("waiting" if self._num_deaths <= self._max_restarts else "failed", now_s)

    def _start_child(self, now_s: float) -> None:
        try:
            self.child = self._spawn()
        except OSError as error:
            # No memory or no process left, say; there may be some later.
            self.reason = str(error)
            self._count_death(now_s)
            return
        self._enter("starting", now_s)

    def _delay_s(self) -> float:
        return min(_FIRST_DELAY_S * 2.0 ** (self._num_deaths - 1), _MAX_DELAY_S)

    def _enter(self, state: State, now_s: float) -> None:
        self.state = state
        self._changed_s = now_s
        self._stalled_s = 0.0
