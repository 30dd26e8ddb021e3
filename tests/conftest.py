"""Fixtures that several test modules share."""

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_fixture import RunningDaemon, running_daemon
from hypothesis import HealthCheck, settings

from omniserve.cache_directory import VARIABLE
from omniserve.engine_process_handle import ENGINE_DEFAULTS
from omniserve.synthetic.create import write_checkpoint

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs so; what the tests start would be deaf to it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As in an engine's process, and before torch is loaded: the compute threads of engines in these
# processes would else spend most of the cores that they share on waiting for each other.
os.environ.setdefault("GOMP_SPINCOUNT", ENGINE_DEFAULTS["GOMP_SPINCOUNT"])

# How long an example takes says how busy the machine is, and nothing about what is tested. The same
# examples every time: what a run finds comes from the change; --hypothesis-profile=random seeks on.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile("same")

LONGEST_FIRST = (
    "test_warm_up.py",
    "test_piggyback_exactness.py",
    "test_paged_attention.py",
    "test_cpu_attn_isa.py",
    "test_isa.py",
    "test_kernels_command.py",
    "test_piggyback_paths.py",
    "test_step_graphs.py",
    "test_devices_attention.py",
    "test_daemon.py",
    "test_profile_command.py",
    "test_demo.py",
    "test_kernel_cache.py",
    "test_scheduler_piggyback_simulation.py",
    "test_client_commands.py",
    "test_weight_store.py",
    "test_model_changes_process.py",
    "test_profiling_daemon.py",
    "test_host_models.py",
    "test_piggyback_faults.py",
    "test_benchmarks_tenants.py",
    "test_fuzz.py",
)
"""Files of half a minute and more: a worker that began one of them last would end alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, for workers that each take the next file when they are free."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    """Commands that run in this process send logs to what was stderr then, and is closed now."""
    root, ours = logging.getLogger(), logging.getLogger("omniserve")
    handlers, levels = set(root.handlers), (root.level, ours.level)
    yield
    for handler in [each for each in root.handlers if each not in handlers]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="session", autouse=True)
def cache_directory(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Path]:
    """Where this process and its children keep what they find out: not in the user's own cache.

    Processes that share the work of one run share it too: kernels are compiled once.
    """
    of_process = tmp_path_factory.getbasetemp()
    of_run = of_process.parent if hasattr(pytestconfig, "workerinput") else of_process
    directory = of_run / "cache"
    directory.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(directory))
        yield directory


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where daemons of the tests listen for their operators. Short, because it holds sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", name)
        for variable in ("OMNISERVE_ADMIN", "RUNTIME_DIRECTORY"):
            patch.delenv(variable, raising=False)
        yield Path(name)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 with tokenizer and chat template."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", arch="qwen3", preset="tiny")


@pytest.fixture(scope="session")
def daemon(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    """One daemon for all tests that only talk to it."""
    with running_daemon(tiny_checkpoint, tmp_path_factory.mktemp("daemon")) as running:
        yield running
