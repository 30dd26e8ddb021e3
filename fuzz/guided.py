"""One target under a coverage-guided fuzzer, which takes over the process: see `campaign`.

`python -m fuzz.guided COMMAND TARGET CHECKPOINT [options of libFuzzer, directories]`, where COMMAND
runs just this with the options alone, for the fuzzer to run itself again.
"""

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]


def main() -> None:
    command, name, checkpoint, *options = sys.argv[1:]
    # What is imported from here on is watched: which branches a case takes steers the next ones.
    with atheris.instrument_imports(include=["omniserve", "yaml"]):
        from fuzz.targets import TARGETS
    target = TARGETS[name](Path(checkpoint))
    atheris.Setup([command, *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
