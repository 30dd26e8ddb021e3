"""The example of the host attention process runs as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

_PAGE = Path(__file__).parents[1] / "docs" / "cpu-attention.md"


def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    section = _PAGE.read_text().partition("\n## The host attention process\n")[2]
    example = re.search(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert example is not None
    script = tmp_path / "example.py"
    script.write_text(example[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "0 (1, 8, 64) (1, 8)\n1 (1, 8, 64) (1, 8)\n"
