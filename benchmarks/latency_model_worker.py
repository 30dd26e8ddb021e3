"""The process that runs held-out traffic: a task on stdin, what came of it on stdout, JSON both."""

import gc
import sys

import msgspec
from latency_model_traffic import Ran, Task, Traffic, time_fixed_work

from omniserve.engine.core import Engine
from omniserve.profiling.timed_engine import TimedEngine

_FIXED_WORKS = 2000


def main() -> int:
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    (model,) = task.settings.models
    assert model.step_time is not None
    engine = Engine(task.settings)
    engine.warm_up()
    timed = TimedEngine(engine, model, task.seed)
    gc.collect()
    gc.freeze()
    steps = list(Traffic(timed, task, model.step_time).run())
    timed.close()
    engine.close()
    sys.stdout.buffer.write(msgspec.json.encode(Ran(steps, time_fixed_work(_FIXED_WORKS))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
