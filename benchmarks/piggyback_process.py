"""What every process of benchmarks/piggyback.py is: settings in, then a line a command."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Servant(Protocol):
    """Does what commands say."""

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command, whose `kind` names it."""

    def close(self) -> None:
        """Ends what it started."""


def serve(make: Callable[[dict[str, Any]], Servant]) -> None:
    """Obeys JSON lines on the real stdin until it ends; the first one holds the settings.

    Answers go to the real stdout, everything else that is printed to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    servant = make(json.loads(sys.stdin.readline()))
    try:
        _answer(answers, {})
        for line in sys.stdin:
            _answer(answers, servant.obey(json.loads(line)))
    finally:
        servant.close()
    # Engines leave threads behind that make an orderly exit slow or noisy.
    os._exit(0)


def _answer(answers: Any, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()
