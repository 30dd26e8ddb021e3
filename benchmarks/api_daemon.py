"""`omniserve serve FILE` over the null engine: `api_daemon.py CPU FILE ENGINE-OPTIONS...`.

CPU is the one core that the daemon gets, threads of its libraries included; -1 leaves it all.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from omniserve import daemon
from omniserve.cli import main
from omniserve.config import Config
from omniserve.engine_supervision import EngineSupervision
from omniserve.logs import LogSettings

ENGINE = str(Path(__file__).with_name("api_null_engine.py"))


def run(cpu: int, config_path: str, *engine_options: str) -> int:
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})
    original = daemon.supervision_of

    def supervision_of(config: Config, log_settings: LogSettings) -> EngineSupervision:
        command = (sys.executable, ENGINE, *engine_options)
        return replace(original(config, log_settings), command=command)

    daemon.supervision_of = supervision_of
    return main(["serve", config_path])


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2], *sys.argv[3:]))
