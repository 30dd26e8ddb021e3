"""A daemon as a real process over a scripted engine, watched while it is fuzzed."""

import json
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon_process import DaemonProcess
from scripted_daemon import SCRIPT as ENGINE_SCRIPT

from fuzz.defects import Defect, check, check_no_secret

DAEMON_SCRIPT = str(Path(ENGINE_SCRIPT).with_name("scripted_daemon.py"))
_CONFIG = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "unix:{directory}/admin.sock"}}
models: [{{name: demo, path: {checkpoint}}}]
tiers:
  - {{name: interactive, class: latency_sensitive, ttft_ms: 500, tpot_ms: 100}}
  - {{name: voice, class: latency_sensitive, ttft_ms: 500, tpot_ms: 100}}
  - {{name: batch, class: best_effort}}
"""


@dataclass(frozen=True, slots=True)
class ServedFront:
    grpc_address: str
    http_url: str
    process: DaemonProcess

    @property
    def http_address(self) -> tuple[str, int]:
        host, _, port = self.http_url.removeprefix("http://").rpartition(":")
        return host, int(port)


@contextmanager
def served_front(checkpoint: Path) -> Iterator[ServedFront]:
    """At the end the daemon has to stop in peace, and its log to hold no error and no secret."""
    with tempfile.TemporaryDirectory(prefix="omniserve-fuzz-") as directory:
        config = Path(directory) / "c.yaml"
        config.write_text(_CONFIG.format(directory=directory, checkpoint=checkpoint))
        options = ("--token-s", "0", "--", "--log-format", "json")
        with DaemonProcess(DAEMON_SCRIPT, str(config), *options) as process:
            yield ServedFront(*process.wait_ready(), process)
            check(process.process.poll() is None, "the daemon ended")
            process.signal(signal.SIGTERM)
            status = process.wait()
        check_log(process.log)
        check(status == 0, f"the daemon ended with {status}")


def check_log(log: str) -> None:
    """Of a daemon that logs JSON."""
    check_no_secret(log)
    for line in log.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            raise Defect(f"a line of the log is not JSON: {line[:500]!r}") from None
        is_bad = event["level"] == "error" or "traceback" in event
        check(not is_bad, f"an error was logged: {line[:2000]}")
