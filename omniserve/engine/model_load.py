"""One model that is being loaded beside others that run."""

import errno
import os
import sys
import threading
from collections.abc import Callable

import torch

from omniserve.devices.device import Device
from omniserve.devices.openmp_team import compute_alone
from omniserve.engine.build import BuiltModel, build_model
from omniserve.engine.kv_sharing import KvBudgets
from omniserve.engine.load_log import LoadLog
from omniserve.errors import CheckpointError, ConfigError, OmniServeError
from omniserve.models.kept_weights import KeptModel
from omniserve.models.weight_store import WeightStore
from omniserve.settings import LoadPhase, ModelSettings

_NICENESS = 10
"""Beside compute threads that are never idle it gets about a tenth of one core, without them all
of it: steps are hardly longer, and the load comes to an end."""
_SWITCH_S = 100e-6
"""How long the step loop may wait for Python's lock; by default it would be 5 ms, again and again
in each layer."""

_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")

Prepare = Callable[[ModelSettings], ModelSettings]


class LoadEnded(OmniServeError):
    """It is not wanted any more."""


class ModelLoad:
    """Reads and lays out the weights in a thread of its own, with a low priority.

    What takes long in it (reading, copying, packing) does not hold Python's lock, so that steps go
    on meanwhile on all compute threads.
    """

    def __init__(
        self, question: int, settings: ModelSettings, prepare: Prepare, digest: str = ""
    ) -> None:
        """`prepare` completes the settings; it is called in the thread. With a `digest`, a model
        that is another one is refused."""
        self.question = question
        self.settings = settings
        self.phase: LoadPhase = "checking"
        self.done_bytes, self.total_bytes = 0, 0
        self.built: BuiltModel | None = None
        self.error: CheckpointError | ConfigError | None = None
        """Why it failed; without its traceback, which would keep alive what was read."""
        self._prepare = prepare
        self._digest = digest
        self._log = LoadLog(settings.name)
        self._is_ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self,
        device: Device,
        store: WeightStore,
        budgets: KvBudgets,
        kept: KeptModel | None = None,
    ) -> None:
        """Begins; to be asked for `is_done` from then on. `kept` are the weights of a model that
        slept."""
        self._thread = threading.Thread(
            target=self._run,
            args=(device, store, budgets, kept),
            name=f"load-{self.settings.name}",
            daemon=True,
        )
        self._thread.start()

    @property
    def is_wake(self) -> bool:
        """Whether it is of a model that slept."""
        return self._digest != ""

    def end(self) -> None:
        """It comes to nothing; `is_done` soon after."""
        self._is_ended.set()

    @property
    def is_ended(self) -> bool:
        return self._is_ended.is_set()

    @property
    def is_done(self) -> bool:
        """Whether there is a built model, an error, or, where it was ended, neither."""
        return self._thread is not None and not self._thread.is_alive()

    def _run(
        self, device: Device, store: WeightStore, budgets: KvBudgets, kept: KeptModel | None
    ) -> None:
        switch_s = sys.getswitchinterval()
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            compute_alone()
            sys.setswitchinterval(_SWITCH_S)
            self.settings = self._prepare(self.settings)
            with torch.inference_mode():
                built = build_model(self.settings, device, store, budgets, self._note, kept)
            self._require_same(built)
            self.built = built
        except LoadEnded:
            pass
        except (CheckpointError, ConfigError) as error:
            self.error = type(error)(str(error))
        except (MemoryError, torch.OutOfMemoryError):
            self.error = self._no_memory()
        except Exception as error:
            if _lacked_memory(error):
                self.error = self._no_memory()
                return
            # Whatever it is, models that run have no part in it.
            self.error = CheckpointError(
                f"models.{self.settings.name}: {type(error).__name__}: {error}"
            )
        finally:
            sys.setswitchinterval(switch_s)

    def _no_memory(self) -> ConfigError:
        return ConfigError(f"models.{self.settings.name}: there is no memory left for it")

    def _require_same(self, built: BuiltModel) -> None:
        """Raises CheckpointError, with nothing left of what was built."""
        if self._digest in ("", built.info.digest):
            return
        for _ in built.take_apart():
            pass
        raise CheckpointError(
            f"models.{self.settings.name}: its files have changed since it fell asleep; unload it, "
            "and load it again to have what they are now"
        )

    def _note(self, phase: LoadPhase, done_bytes: int, total_bytes: int) -> None:
        if self._is_ended.is_set():
            raise LoadEnded
        self.phase, self.done_bytes, self.total_bytes = phase, done_bytes, total_bytes
        self._log(phase, done_bytes, total_bytes)


def _lacked_memory(error: Exception) -> bool:
    """torch has no error of its own for host memory that cannot be had, only words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = str(error)
    return isinstance(error, RuntimeError) and any(each in words for each in _NO_MEMORY)
