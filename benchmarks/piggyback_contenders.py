"""The engines of one frame, each in a process of its own, and what they are asked to do."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from engine_worker import Worker
from machine import OtherLoad
from piggyback_cases import Cell, Frame, Load, Piggybacking, room_for
from piggyback_results import Window

from omniserve.engine_process_handle import ENGINE_DEFAULTS

HERE = Path(__file__).resolve().parent
Answer = dict[str, Any]

LS_ALONE = "LS alone"
DEVICE_ONLY = "device only"
PIGGYBACKING = "piggybacking"
SECOND_ENGINE = "second engine"

PERIOD_S = 0.3
"""Of the latency-sensitive load, which is there for a part of it."""
SETTLE_S = 0.5
"""In which requests that were all placed at once spread over the layers."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The checkpoint that everyone serves."""

    path: Path
    dtype: str
    kv_bytes_per_token: int


class Processes:
    """Starts processes; each is bound to its cores from its first instruction on."""

    def __init__(self, model: ModelFiles, load: Load, log_dir: Path) -> None:
        self._model, self._load, self._log_dir = model, load, log_dir
        self._started: list[Worker] = []

    def start(
        self, script: str, name: str, cores: Sequence[int], settings: Mapping[str, Any]
    ) -> Worker:
        """Raises WorkerDied where it does not get ready."""
        environment = {"PYTHONPATH": str(HERE.parent)}
        # As the daemon starts its engine.
        environment |= {key: os.environ.get(key, value) for key, value in ENGINE_DEFAULTS.items()}
        shared = {
            "model": str(self._model.path),
            "dtype": self._model.dtype,
            "kv_bytes_per_token": self._model.kv_bytes_per_token,
            "load": asdict(self._load),
        }
        log = self._log_dir / f"{name.replace(' ', '-')}.log"
        with _bound_to(cores):
            worker = Worker(
                [sys.executable, str(HERE / script)], environment, {**shared, **settings}, log
            )
        self._started.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._started:
            worker.close()
        self._started.clear()


@contextmanager
def _bound_to(cores: Sequence[int]) -> Iterator[None]:
    """Processes started meanwhile may use these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ask_together(workers: Sequence[Worker], commands: Sequence[Answer]) -> list[Answer]:
    """One command each, at the same time; their answers."""
    with ThreadPoolExecutor(len(workers)) as threads:
        return list(threads.map(lambda worker, command: worker.ask(command), workers, commands))


def _window_command(duty: float, num_periods: int, host_share: float = 1.0) -> Answer:
    return {
        "kind": "window",
        "duty": duty,
        "period_s": PERIOD_S,
        "num_periods": num_periods,
        "host_share": host_share,
    }


def children_cpu_seconds() -> float:
    """Processor time so far of all processes that this one started, and of theirs."""
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


class Arena:
    """All contenders of a frame. One works at a time, but for the second engine, which helps."""

    def __init__(
        self, frame: Frame, load: Load, processes: Processes, piggybacking: Piggybacking
    ) -> None:
        """`piggybacking`: what contenders piggyback with where nobody says otherwise."""
        self.frame, self.load, self.piggybacking = frame, load, piggybacking
        self._processes = processes
        self._workers: dict[str, Worker] = {}

    def start(self, contenders: Sequence[str]) -> None:
        """At the same time: most of it is reading libraries. Raises WorkerDied."""
        with ThreadPoolExecutor(len(contenders)) as threads:
            started = threads.map(self._start, contenders)
            self._workers |= zip(contenders, started, strict=True)

    def _start(self, contender: str) -> Worker:
        frame, second = self.frame, contender == SECOND_ENGINE
        cores = {PIGGYBACKING: frame.cores, SECOND_ENGINE: frame.overflow_cores}
        settings = {
            "device": "cpu" if second else frame.device,
            "device_threads": len(frame.overflow_cores) if second else frame.device_threads,
        }
        name = f"{frame.name} {contender}"
        return self._processes.start(
            "piggyback_worker.py", name, cores.get(contender, frame.device_cores), settings
        )

    @property
    def contenders(self) -> tuple[str, ...]:
        return tuple(self._workers)

    def open_ls_alone(self, longest_context: int) -> None:
        """With room for one best-effort prompt, so that prefill can be timed there."""
        room = room_for(self.load, longest_context, 1)
        self._ask(LS_ALONE, kind="open", context=longest_context, room=room.as_json())

    def open(
        self,
        cell: Cell,
        contenders: Sequence[str],
        piggybacking: Piggybacking | None = None,
        num_best_effort: int | None = None,
    ) -> None:
        """Builds their engines and puts best-effort requests into place.

        num_best_effort: of the piggybacking engine; None takes those of the load.
        """
        wanted = self.load.be_requests if num_best_effort is None else num_best_effort
        resident = cell.num_resident(self.load)
        piggybacking = piggybacking or replace(self.piggybacking, max_resident_decodes=cell.kv_left)
        rooms = {
            DEVICE_ONLY: room_for(self.load, cell.context, resident),
            PIGGYBACKING: room_for(self.load, cell.context, resident, piggybacking),
            SECOND_ENGINE: room_for(self.load, cell.context, wanted - resident, with_ls=False),
        }
        counts = {DEVICE_ONLY: resident, PIGGYBACKING: wanted, SECOND_ENGINE: wanted - resident}
        self._ask_each(
            {
                name: {"kind": "open", "context": cell.context, "room": rooms[name].as_json()}
                for name in contenders
            }
        )
        for name in contenders:
            self.fill(name, counts[name])

    def fill(self, contender: str, num_best_effort: int) -> None:
        """Puts best-effort requests into place, up to that number, and lets them spread out."""
        settle_s = SETTLE_S if contender == PIGGYBACKING else 0.0
        self._ask(contender, kind="fill", num_best_effort=num_best_effort, settle_s=settle_s)

    def end(self, contenders: Sequence[str]) -> None:
        """Gives their memory back."""
        self._ask_each({name: {"kind": "end"} for name in contenders})

    def window(
        self, contender: str, duty: float, num_periods: int, host_share: float = 1.0
    ) -> Window:
        """One measurement; `host_share`: of the time that host attention may run."""
        command = _window_command(duty, num_periods, host_share)
        commands = {contender: command}
        if contender == SECOND_ENGINE:
            # It serves what the device has no room for, beside an engine like "device only".
            commands = {DEVICE_ONLY: command, SECOND_ENGINE: {**command, "duty": 0.0}}
        load = OtherLoad([children_cpu_seconds])
        answers = self._ask_each(commands)
        return Window.of(answers, load.read())

    def window_beside(
        self, probes: Worker, command: Answer, contender: str, duty: float, num_periods: int
    ) -> tuple[Window, Answer]:
        """One measurement while `probes` obeys a command, and its answer."""
        load = OtherLoad([children_cpu_seconds])
        window, answer = ask_together(
            [self._workers[contender], probes],
            [_window_command(duty, num_periods), command],
        )
        return Window.of([window], load.read()), answer

    def prefill(self, context: int, *, beside_ls: bool) -> Answer:
        """Seconds of a prompt computed in the engine of LS_ALONE, and gaps of its LS work."""
        return self._ask(LS_ALONE, kind="prefill", context=context, beside_ls=beside_ls)

    def _ask(self, contender: str, **command: Any) -> Answer:
        return self._workers[contender].ask(command)

    def _ask_each(self, commands: Mapping[str, Answer]) -> list[Answer]:
        return ask_together([self._workers[name] for name in commands], list(commands.values()))
