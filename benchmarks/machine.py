"""What benchmarks say of the machine they ran on, and what else it was doing meanwhile."""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"
    )


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def openmp_environment(python: Path) -> dict[str, str]:
    """vLLM's own advice: without an OpenMP runtime loaded first, its bound threads share a core."""
    runtime = python.parent.parent / "lib" / "libiomp5.so"
    if "LD_PRELOAD" in os.environ or not runtime.exists():
        return {}
    return {"LD_PRELOAD": str(runtime)}


def busy_seconds() -> float:
    """Processor time of the whole machine since it started, idle time left out."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / _TICKS


class OtherLoad:
    """Cores that the rest of the machine used between creation and `read`."""

    def __init__(self, workers: Sequence[Callable[[], float]] = ()) -> None:
        """`workers`: each gives the processor time of a process that is part of the benchmark."""
        self._workers = workers
        self._start = self._snapshot()

    def _snapshot(self) -> tuple[float, float]:
        own = time.process_time() + sum(seconds() for seconds in self._workers)
        return time.perf_counter(), busy_seconds() - own

    def read(self) -> float:
        now, others = self._snapshot()
        return max(0.0, others - self._start[1]) / (now - self._start[0])
