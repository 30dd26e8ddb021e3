"""How far the loading of a model is, for the log."""

import time
from collections.abc import Callable

from omniserve.logs import get_logger, log_event
from omniserve.settings import LoadPhase

_LOG = get_logger(__name__)
_SAY_EVERY_S = 3.0


class LoadLog:
    """Says it every few seconds; a load that is done before is not worth a line."""

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock
        self._next_s = clock() + _SAY_EVERY_S

    def __call__(self, phase: LoadPhase, done_bytes: int, total_bytes: int) -> None:
        now_s = self._clock()
        if now_s >= self._next_s:
            self._next_s = now_s + _SAY_EVERY_S
            share = round(done_bytes / total_bytes, 2) if total_bytes else 0.0
            log_event(_LOG, "loading_model", model=self._model, phase=phase, done=share)
