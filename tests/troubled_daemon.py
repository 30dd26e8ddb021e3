"""`scripted_daemon.py` in bad surroundings: `troubled_daemon.py NAME=VALUE ... -- ARGUMENTS`.

Names are environment variables; STDERR and STDOUT are the files that these go to.
"""

import os
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).parent / "scripted_daemon.py")
ALONE = """
import os, runpy, sys
os.environ.pop("LD_PRELOAD", None)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""What is loaded into this process is not for those that it starts."""


def main() -> None:
    split = sys.argv.index("--")
    environment = dict(os.environ)
    for setting in sys.argv[1:split]:
        name, _, value = setting.partition("=")
        if name in ("STDOUT", "STDERR"):
            os.dup2(os.open(value, os.O_WRONLY), 1 if name == "STDOUT" else 2)
        else:
            environment[name] = value
    command = [sys.executable, "-c", ALONE, SCRIPT, *sys.argv[split + 1 :]]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
