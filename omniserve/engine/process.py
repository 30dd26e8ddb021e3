"""The engine as a process of its own: `python -m omniserve.engine.process ADDRESS`."""

import ctypes
import gc
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from typing import NoReturn

import zmq

from omniserve.engine.model_news import LoadAdvanced, Loaded, News, Refused
from omniserve.errors import (
    CheckpointError,
    ConfigError,
    DeadlineExceeded,
    OmniServeError,
    Overloaded,
    UnknownModel,
)
from omniserve.logs import LogSettings, configure_logging, get_logger, log_event
from omniserve.messages import (
    Abort,
    Configure,
    EngineFailed,
    EngineReady,
    Explain,
    Explained,
    LoadModel,
    ModelLoaded,
    ModelProgress,
    ModelRefused,
    ModelUnloaded,
    Outputs,
    SetShares,
    SetTiers,
    Shutdown,
    SleepModel,
    Stats,
    Submit,
    ToFront,
    UnloadModel,
    decode_to_engine,
    encode,
)
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.settings import ModelSettings
from omniserve.vector_path import require_vector_path
from scheduler.step_time import LinearStepTime

_LOG = get_logger(__name__)
_BUSY_STATS_S = 0.25
_IDLE_STATS_S = 1.0
_CHANGING_POLL_S = 5e-3
"""While models come and go, and nothing else is to be done."""
_PR_SET_PDEATHSIG = 1


class EngineProcess:
    """Moves messages between the front's socket and an `Engine`, at step and layer boundaries."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        # First: what is imported next would end in its traceback.
        require_vector_path()
        from cpu_attn import call_when_compiling
        from omniserve.engine.core import Engine
        from omniserve.profiling.hardware import count_cores

        call_when_compiling(_say_compiling)
        self._socket = socket
        message = decode_to_engine(socket.recv())
        assert isinstance(message, Configure)
        self._settings = message.settings
        self._ready_before_s = time.monotonic() + message.ready_within_s
        self._num_cores = count_cores()
        self._rejected: list[RequestOutput] = []
        self._engine = Engine(message.settings, poll_arrivals=self._receive_all)
        self._stopping = False
        self._next_stats_s = 0.0
        self._was_busy = False
        self._is_checked = False

    def serve(self) -> None:
        """Steps until the front says stop."""
        self._engine.warm_up()
        step_times = self._find_step_times()
        # What is there stays: to look through all of it for garbage holds up steps for 100 ms.
        gc.collect()
        gc.freeze()
        self._send(EngineReady(self._engine.models, self._engine.device, step_times))
        while True:
            self._send_stats()
            if self._engine.has_unfinished:
                self._is_checked = False
            else:
                self._rest()
            self._receive_all()
            if self._stopping:
                self._engine.close()
                return
            outputs = self._engine.step()
            if self._rejected:
                outputs, self._rejected = self._rejected + outputs, []
            if outputs:
                self._send(Outputs(outputs=tuple(outputs)))
            self._send_news()

    def _send_news(self) -> None:
        told = self._engine.take_news()
        if any(not isinstance(news, LoadAdvanced) for news in told):
            # Whoever hears that a model came or went looks at once at what there is now.
            self._next_stats_s = 0.0
            self._send_stats()
        for news in told:
            self._send(_message_of(news))

    def _rest(self) -> None:
        """Until something comes, or for a while."""
        is_changing = self._engine.is_changing
        has_come = self._socket.poll(
            int((_CHANGING_POLL_S if is_changing else _IDLE_STATS_S) * 1e3)
        )
        # Once after work, and not at once: it takes a while, and who comes next would wait for it.
        if not (has_come or is_changing or self._is_checked):
            self._check_integrity()
            self._is_checked = True

    def _with_step_time(self, model: ModelSettings) -> ModelSettings:
        from omniserve.profiling.kept import with_kept_step_time
        from omniserve.profiling.store import default_store

        settings = replace(self._settings, models=(*self._others_of(model), model))
        return with_kept_step_time(settings, self._engine.device, default_store(), self._num_cores)

    def _others_of(self, model: ModelSettings) -> tuple[ModelSettings, ...]:
        return tuple(each for each in self._settings.models if each.name != model.name)

    def _find_step_times(self) -> dict[str, LinearStepTime]:
        from omniserve.profiling.at_start import StartClock, StepTimesAtStart
        from omniserve.profiling.store import default_store

        def is_stopping() -> bool:
            self._receive_all()
            return self._stopping

        finder = StepTimesAtStart(self._engine, self._settings, default_store(), self._num_cores)
        return finder.find(StartClock(self._ready_before_s, is_stopping))

    def _check_integrity(self) -> None:
        """While nobody waits for it. What is wrong is said, not mended: requests go on."""
        try:
            self._engine.check_integrity()
        except AssertionError as error:
            log_event(_LOG, "integrity_check_failed", level=logging.ERROR, problem=str(error))

    def _receive_all(self) -> None:
        while True:
            try:
                message = decode_to_engine(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            match message:
                case Submit(request=request):
                    self._submit(request)
                case Abort(request_ids=request_ids):
                    for request_id in request_ids:
                        self._engine.abort(request_id)
                case SetTiers(tiers=tiers):
                    self._engine.set_tiers(tiers)
                case SetShares(shares=shares):
                    self._engine.set_shares(shares)
                case Explain(question=question, request_id=request_id):
                    self._send(Explained(question, self._engine.explain(request_id)))
                case LoadModel(question=question, settings=settings, digest=digest):
                    self._engine.begin_load(question, settings, self._with_step_time, digest)
                case SleepModel(question=question, model=model):
                    self._engine.begin_sleep(question, model)
                case UnloadModel(question=question, model=model):
                    self._engine.begin_unload(question, model)
                case Shutdown():
                    self._stopping = True
                case Configure():
                    raise AssertionError("configured twice")

    def _submit(self, request: EngineRequest) -> None:
        try:
            self._engine.add(request)
        except OmniServeError as error:
            is_late = isinstance(error, DeadlineExceeded)
            retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
            self._rejected.append(
                RequestOutput(
                    request.request_id,
                    "",
                    (),
                    finish_reason="error",
                    error=str(error),
                    retry_after_s=retry_after_s,
                    missed_deadline=is_late,
                    # It was served when the front sent the request.
                    is_unavailable=isinstance(error, UnknownModel),
                )
            )

    def _send(self, message: ToFront) -> None:
        self._socket.send(encode(message))

    def _send_stats(self) -> None:
        now_s = time.monotonic()
        busy = self._engine.has_unfinished
        # At once where work begins or ends: what is freed is to be seen to be free.
        if busy != self._was_busy or now_s >= self._next_stats_s:
            self._was_busy = busy
            self._next_stats_s = now_s + (_BUSY_STATS_S if busy else _IDLE_STATS_S)
            self._send(Stats(models=self._engine.stats()))


def _say_compiling() -> None:
    from cpu_attn import cache_folder

    kept_in = cache_folder()
    log_event(_LOG, "compiling_kernels", takes="a minute or so", kept_in=str(kept_in or "nothing"))


def _message_of(news: News) -> ToFront:
    match news:
        case LoadAdvanced(question, phase, done_bytes, total_bytes):
            return ModelProgress(question, phase, done_bytes, total_bytes)
        case Loaded(question, info, step_time):
            return ModelLoaded(question, info, step_time)
        case Refused(question, message, is_checkpoint):
            return ModelRefused(question, message, is_checkpoint)
    return ModelUnloaded(news.question)


def _end_with_front() -> None:
    """Asks the kernel to kill this process when the front dies, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    front = os.environ.get("OMNISERVE_FRONT_PID")
    if front is not None and os.getppid() != int(front):
        # It died before the kernel was asked.
        os._exit(1)


def main(address: str) -> int:
    """Connects to the front, loads what it says, serves; the exit code is 0 after Shutdown."""
    _end_with_front()
    # The terminal sends Ctrl-C to the whole group; the front decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging(LogSettings.from_environment(os.environ))
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.connect(address)
    try:
        process = EngineProcess(socket)
        process.serve()
    except (CheckpointError, ConfigError) as error:
        socket.send(encode(EngineFailed(message=str(error))))
        return 2
    finally:
        # Everything sent is delivered before the process ends, unless the front is gone.
        context.destroy(linger=2000)
    return 0


def _exit(status: int) -> NoReturn:
    """All is closed and delivered. What interpreter and torch would still take down may need
    seconds where cores are busy, and the front waits for the end."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _exit(main(sys.argv[1]))
