"""The measuring process, from the side of whoever wants to know."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from omniserve.engine_process_handle import engine_environment
from omniserve.errors import CheckpointError, ConfigError, OmniServeError
from omniserve.profiling.assembly import MeasuringFailed
from omniserve.profiling.messages import (
    Answer,
    Command,
    Failed,
    decode_answer,
    encode,
)

_STOP_S = 5.0
_NUM_LINES = 5


@contextmanager
def measuring(command: Command) -> Iterator[Iterator[Answer]]:
    """The answers to a command, as they come; the process ends with the block.

    Raises what the engine raised, or MeasuringFailed.
    """
    threads = command.settings.device.threads
    environment = engine_environment({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            (sys.executable, "-P", "-m", "omniserve.profiling.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield _answers(process, command, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP_S)


def _answers(
    process: "subprocess.Popen[bytes]", command: Command, log: IO[bytes]
) -> Iterator[Answer]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(encode(command) + b"\n")
    process.stdin.close()
    for line in process.stdout:
        answer = decode_answer(line)
        if isinstance(answer, Failed):
            raise _error(answer)
        yield answer
    if process.wait():
        log.seek(0)
        said = log.read().decode("utf-8", "replace").splitlines()[-_NUM_LINES:]
        raise MeasuringFailed("the measuring process failed:" + "".join(f"\n  {s}" for s in said))


def _error(failed: Failed) -> OmniServeError:
    kinds: dict[str, type[OmniServeError]] = {
        "ConfigError": ConfigError,
        "CheckpointError": CheckpointError,
    }
    return kinds.get(failed.kind, OmniServeError)(failed.message)
