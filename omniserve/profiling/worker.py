"""The process that measures: `python -m omniserve.profiling.worker`.

One command on stdin, answers on stdout, one JSON document a line.
"""

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import IO

from omniserve.errors import CheckpointError, ConfigError, OmniServeError
from omniserve.profiling.messages import (
    Answer,
    Command,
    Failed,
    MeasureHost,
    MeasureSteps,
    Pass,
    decode_command,
    encode,
)
from omniserve.vector_path import require_vector_path

_PR_SET_PDEATHSIG = 1


def measure_steps(command: MeasureSteps) -> Iterator[Answer]:
    """Round after round of the scenes that others disturbed too often so far."""
    from omniserve.profiling.cases import Scene, scenes, thin
    from omniserve.profiling.medley import Medley, medleys
    from omniserve.profiling.scenes import SceneRunner, limits_of
    from omniserve.profiling.timed_engine import TimedEngine

    if command.cores is not None:
        os.sched_setaffinity(0, command.cores)
    engine = TimedEngine(command.settings, command.model, command.seed)
    yield engine.opened()
    limits = limits_of(engine)
    chosen: list[Scene | Medley] = [*medleys(limits), *thin(scenes(limits), command.max_scenes)]
    runner = SceneRunner(engine, chosen, command.patience_s)
    gc.collect()
    gc.freeze()
    start_s = time.perf_counter()
    while runner.lacking and runner.measured_s < command.budget_s:
        samples = tuple(runner.run_round())
        yield Pass(time.perf_counter() - start_s, len(chosen), len(runner.lacking), samples)
    engine.close()


def measure_host(command: MeasureHost) -> Iterator[Answer]:
    from omniserve.profiling.host import measure

    yield from measure(command)


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
    return measure_steps(command) if isinstance(command, MeasureSteps) else measure_host(command)


def _write(answers: IO[bytes], answer: Answer) -> None:
    answers.write(encode(answer) + b"\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
