"""The process that measures: `python -m omniserve.profiling.worker`.

One command on stdin, answers on stdout, one JSON document a line.
"""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import IO

from omniserve.errors import CheckpointError, ConfigError, OmniServeError
from omniserve.profiling.messages import (
    Answer,
    Command,
    Failed,
    Identified,
    Identify,
    Measure,
    decode_command,
    encode,
)
from omniserve.vector_path import require_vector_path

_PR_SET_PDEATHSIG = 1


def _measure(command: Measure) -> Iterator[Answer]:
    from omniserve.engine.core import Engine
    from omniserve.profiling.hardware import count_cores, measured_on
    from omniserve.profiling.measure import measure
    from omniserve.profiling.timed_engine import TimedEngine

    (model,) = command.settings.models
    num_cores = count_cores()
    engine = Engine(command.settings)
    engine.warm_up()
    timed = TimedEngine(engine, model, command.seed)
    gc.collect()
    gc.freeze()
    of = measured_on(model, engine.device, num_cores)
    yield from measure(timed, of, command.effort)
    timed.close()
    engine.close()


def _identify(command: Identify) -> Iterator[Answer]:
    from omniserve.devices.device import open_device
    from omniserve.profiling.hardware import count_cores, measured_on

    (model,) = command.settings.models
    device = open_device(command.settings.device)
    yield Identified(measured_on(model, device.description, count_cores()))


def main() -> int:
    """Obeys one command; what cannot be done is answered with Failed."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        require_vector_path()
        for answer in _obey(decode_command(sys.stdin.buffer.readline())):
            _write(answers, answer)
    except ConfigError as error:
        _write(answers, Failed("ConfigError", str(error)))
    except CheckpointError as error:
        _write(answers, Failed("CheckpointError", str(error)))
    except OmniServeError as error:
        _write(answers, Failed("OmniServeError", str(error)))
    return 0


def _obey(command: Command) -> Iterator[Answer]:
    return _measure(command) if isinstance(command, Measure) else _identify(command)


def _write(answers: IO[bytes], answer: Answer) -> None:
    answers.write(encode(answer) + b"\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
