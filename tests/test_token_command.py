"""`omniserve token new` as a process."""

import hashlib
import json
import re
import subprocess
import sys

from daemon_process import ROOT


def run(*options: str) -> str:
    command = [sys.executable, "-m", "omniserve", "token", "new", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_the_hash_is_the_one_of_the_token() -> None:
    found = re.fullmatch(r"token:        (\S+)\ntoken_sha256: (\S+)\n", run())
    assert found is not None
    assert hashlib.sha256(found[1].encode()).hexdigest() == found[2]


def test_json_has_both_and_each_call_makes_another() -> None:
    first, second = (json.loads(run("--json")) for _ in range(2))
    assert set(first) == {"token", "token_sha256"}
    assert first["token"] != second["token"]
    assert hashlib.sha256(first["token"].encode()).hexdigest() == first["token_sha256"]
