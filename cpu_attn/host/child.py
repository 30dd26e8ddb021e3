"""One run of the host attention process, seen from its parent. Nothing here waits, but `end`."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cpu_attn
from cpu_attn.host.added_models import AddedModel
from cpu_attn.host.channel import Channel
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.handshake import (
    AddModel,
    CannotStart,
    ModelAdded,
    Ready,
    RemoveModel,
    Start,
    Stop,
)
from cpu_attn.host.settings import HostSettings

_REAP_S = 10.0


class HostChild:
    """Starts the process when made; its workers serve once `ready`, a model once it is known."""

    def __init__(self, settings: HostSettings, models: Sequence[AddedModel], ring_fd: int) -> None:
        """`models` are there before it is ready, or it has said of each why it is not."""
        self.ready = False
        self.last_words = ""
        """Why it could not start, where it said so."""
        self._known: dict[int, str] = {}
        """By serial, empty or why the model cannot be served, until somebody asks."""
        self._outbox: deque[tuple[object, tuple[int, ...]]] = deque()
        self._channel, theirs = Channel.pair()
        # -P and the package's own place: whatever the working directory holds is not imported.
        command = [sys.executable, "-P", "-m", "cpu_attn.host.process", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=_environment(), stdin=subprocess.DEVNULL
            )
        # Its start takes seconds of computing, not to be had at the cost of whoever started it.
        # Where the system refuses, the child will say so of its workers.
        with suppress(OSError):
            os.sched_setaffinity(self.pid, settings.cores)
        self._say(Start(os.getpid(), settings, len(models)), (ring_fd,))
        for added in models:
            self.add_model(added)

    def add_model(self, added: AddedModel) -> None:
        """Hands a model over; `take_known` will tell what became of it."""
        fds = (added.memory.memory.fd, added.model.pool.fd)
        self._say(AddModel(added.serial, added.index, added.model), fds)

    def remove_model(self, added: AddedModel) -> None:
        """Takes it away. Its descriptors may be closed after this."""
        remove = RemoveModel(added.index)
        for place, (message, _) in enumerate(self._outbox):
            if isinstance(message, AddModel) and message.serial == added.serial:
                # Not just left out: a child that starts waits for so many messages.
                self._outbox[place] = (remove, ())
                return
        self._say(remove)

    def take_known(self) -> dict[int, str]:
        """By serial, what became of models since it was last asked: "" or why it is not served."""
        known, self._known = self._known, {}
        return known

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status once it is gone for good, all threads with it; None before."""
        status = self._process.poll()
        # After that, so that the words of one that is gone have all been said.
        self._listen()
        self._post()
        return status

    def kill(self) -> None:
        """Without waiting for the end. Works on a stopped process too."""
        self._process.kill()

    def end(self, grace_s: float) -> None:
        """Asks it to end, and kills it after `grace_s`; returns when it is gone.

        Raises HostAttentionDown where the machine does not let it go: its memory is not safe then.
        """
        if self._channel.fileno() >= 0:
            # Said, for closing alone goes unnoticed while another process has a copy of this end.
            self._outbox.clear()
            self._say(Stop())
            self._channel.close()
        try:
            self._process.wait(grace_s)
            return
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired as error:
            raise HostAttentionDown(f"process {self.pid} was killed and does not end") from error

    def _say(self, message: object, fds: tuple[int, ...] = ()) -> None:
        self._outbox.append((message, fds))
        self._post()

    def _post(self) -> None:
        """Sends what the channel has room for, in order."""
        try:
            while self._outbox and self._channel.send(*self._outbox[0]):
                self._outbox.popleft()
        except OSError:
            # It is dead already, which `poll` will find.
            self._outbox.clear()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while received := self._channel.receive(waits=False):
                match received[0]:
                    case Ready():
                        self.ready = True
                    case ModelAdded(serial, error):
                        self._known[serial] = error
                    case CannotStart(reason):
                        self.last_words = reason


def describe_exit(status: int) -> str:
    """`signal SIGKILL` or `exit status 1`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    package_root = str(Path(cpu_attn.__file__).parents[1])
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([package_root, path] if path else [package_root])
    # Its threads are the workers; a BLAS would bring more that nobody uses.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment
