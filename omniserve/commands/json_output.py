"""What commands print for programs."""

import contextlib
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path


def print_json(value: object) -> None:
    """One document on stdout, in ASCII, whatever the terminal takes."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_file(path: Path) -> None:
    """A document that was written before; raises OSError."""
    sys.stdout.write(path.read_text(encoding="utf-8").rstrip("\n") + "\n")


def text_aside(is_json: bool) -> AbstractContextManager[object]:
    """With JSON to come on stdout, what is printed for people meanwhile goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr) if is_json else contextlib.nullcontext()
