"""The example of using `cpu_attn` runs as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[1] / "docs" / "cpu-attention.md"


@pytest.mark.timeout(600)
def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    section = _PAGE.read_text().partition("\n## Using it\n")[2].partition("\n## ")[0]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example is not None
    script = tmp_path / "example.py"
    script.write_text(example[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=580
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nTrue\n", "")
