"""The process that measures: `python -m omniserve.simulate.calibrate_worker`.

One command on stdin, answers on stdout, one JSON document a line.
"""

import ctypes
import gc
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import IO

from omniserve.errors import CheckpointError, ConfigError, OmniServeError
from omniserve.simulate.calibrate_messages import (
    Answer,
    Command,
    Failed,
    MeasureHost,
    MeasureSteps,
    Pass,
    StepSample,
    decode_command,
    encode,
)
from omniserve.simulate.others_meter import QUIET_CORES, await_quiet
from omniserve.vector_path import require_vector_path

_PR_SET_PDEATHSIG = 1
_QUIET_RUNS = 4
"""Of each scene: their median is what a step takes."""
_PATIENCE_S = 0.5
"""Before each scene, where others use the cores."""


def measure_steps(command: MeasureSteps) -> Iterator[Answer]:
    """Round after round of the scenes that others disturbed too often so far."""
    from omniserve.simulate.calibrate_cases import scenes, thin
    from omniserve.simulate.calibrate_engine import TimedEngine
    from omniserve.simulate.calibrate_scenes import limits_of, run_scene

    if command.cores is not None:
        os.sched_setaffinity(0, command.cores)
    engine = TimedEngine(command.settings, command.model, command.seed)
    yield engine.opened()
    lacking = dict(enumerate(thin(scenes(limits_of(engine)), command.max_scenes)))
    num_scenes, num_quiet = len(lacking), Counter[int]()
    gc.collect()
    gc.freeze()
    start_s = time.perf_counter()
    elapsed_s = 0.0
    while lacking and elapsed_s < command.budget_s:
        samples: list[StepSample] = []
        for index, scene in lacking.items():
            await_quiet(_PATIENCE_S)
            samples += run_scene(engine, index, scene)
            num_quiet[index] += samples[-1].others_cores <= QUIET_CORES
        lacking = {at: scene for at, scene in lacking.items() if num_quiet[at] < _QUIET_RUNS}
        elapsed_s = time.perf_counter() - start_s
        yield Pass(elapsed_s, num_scenes, len(lacking), tuple(samples))
    engine.close()


def measure_host(command: MeasureHost) -> Iterator[Answer]:
    from omniserve.simulate.calibrate_host import measure

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
