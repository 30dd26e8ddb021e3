"""A daemon with the real engine, for tests that only talk to it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon_process import DaemonProcess

from omniserve.admin_address import admin_target_of

_CONFIG = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0"}}
device: {{kind: cpu, threads: 2}}
models:
  - {{name: demo, path: {checkpoint}, dtype: float32, device_kv_bytes: 16MiB,
     step_times: none, piggyback: {piggyback}}}
tiers:
  - {{name: interactive, class: latency_sensitive, ttft_ms: 2000, tpot_ms: 500, percentile: 99}}
  - {{name: batch, class: best_effort}}
"""


def config_text(checkpoint: Path, piggyback: str = "{}") -> str:
    """One model, `demo`, on free ports; `piggyback` is that section of the model, in YAML."""
    return _CONFIG.format(checkpoint=checkpoint, piggyback=piggyback)


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    grpc_address: str
    http_url: str
    process: DaemonProcess

    @property
    def admin_target(self) -> str:
        """Of its socket for operators, as gRPC takes it."""
        target = admin_target_of(self.grpc_address)
        assert target is not None
        return target


@contextmanager
def running_daemon(
    checkpoint: Path, directory: Path, piggyback: str = "{}"
) -> Iterator[RunningDaemon]:
    """Serves a checkpoint as `demo` until the block ends; then the daemon has to end with 0."""
    config = directory / "omniserve.yaml"
    config.write_text(config_text(checkpoint, piggyback))
    with DaemonProcess("-m", "omniserve", "serve", str(config)) as process:
        grpc_address, http_url = process.wait_ready()
        yield RunningDaemon(grpc_address, http_url, process)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
