"""Writes requirements/*.txt: what setup.cfg asks for and all that needs, as installed.

torch is left out: which build of it is right depends on the machine (scripts/python_env.sh).
"""

import configparser
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make lock`: the versions that the suite passed with.\n"


def declared(section: str, option: str) -> list[Requirement]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in parser[section][option].split("\n") if line.strip()]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Pins of the requirements and of everything they need, by canonical name."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found = distribution(name)
        pins[name] = f"{found.metadata['Name']}=={found.version.split('+')[0]}"
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(Requirement(text), wanted) for text in found.requires or ()]
    return pins


def write(name: str, pins: dict[str, str], before: str = "") -> None:
    lines = "".join(pins[key] + "\n" for key in sorted(pins))
    path = ROOT / "requirements" / name
    path.write_text(HEADER + before + lines)
    sys.stderr.write(f"{path.relative_to(ROOT)}: {len(pins)} pins\n")


def main() -> None:
    runtime = closure(declared("options", "install_requires"))
    del runtime["torch"]
    dev = closure(declared("options.extras_require", "dev"))
    for name in (*runtime, "torch"):
        dev.pop(name, None)
    fuzz = closure(declared("options.extras_require", "fuzz"))
    write("runtime.txt", runtime)
    write("dev.txt", dev, before="-r runtime.txt\n")
    write("fuzz.txt", fuzz)


if __name__ == "__main__":
    main()
