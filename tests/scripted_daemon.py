"""`omniserve serve` over a scripted engine: FILE [engine options] [-- serve options].

With BREAK_SUPERVISION set in the environment the supervision of the engine has a fault. With
SERVER_STOP_S, that is how long the servers may take to hand over what is already answered.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from omniserve import daemon
from omniserve.cli import main
from omniserve.config import Config
from omniserve.engine_client import EngineClient
from omniserve.engine_supervision import EngineSupervision
from omniserve.logs import LogSettings

SCRIPT = str(Path(__file__).parent / "scripted_engine.py")


def broken_lost(self: EngineClient) -> NoReturn:
    raise RuntimeError("this supervision has a fault")


def run(config_path: str, *options: str) -> int:
    split = options.index("--") if "--" in options else len(options)
    engine_options, serve_options = options[:split], options[split + 1 :]
    original = daemon.supervision_of

    def supervision_of(config: Config, log_settings: LogSettings) -> EngineSupervision:
        return replace(
            original(config, log_settings), command=(sys.executable, SCRIPT, *engine_options)
        )

    daemon.supervision_of = supervision_of
    if "SERVER_STOP_S" in os.environ:
        daemon.SERVER_STOP_S = float(os.environ["SERVER_STOP_S"])
    if "BREAK_SUPERVISION" in os.environ:
        EngineClient.lost = broken_lost  # type: ignore[method-assign]
    return main(["serve", config_path, *serve_options])


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
