"""Load for a server with tenants: whose token it is sent with, and that nobody is shown it."""

import asyncio
from pathlib import Path

import pytest
from api_servers import Servers, serving
from command_process import run_command
from tenant_builders import make_tenant, make_tenanted_service, token_of

from omniserve.bench.load.addresses import Addresses
from omniserve.bench.run_files import load_run


async def run_load(
    servers: Servers, directory: Path, over: str, *arguments: str, token: str = ""
) -> tuple[int, str]:
    """Exit status, and all that was said; `token` is that of the environment."""
    target = ("--grpc", servers.grpc.address) if over == "grpc" else ("--http", servers.url)
    arguments = (
        *("bench", "run", *target, "--duration-s", "1", "--warm-up-s", "0"),
        *("--backlog", "requests=2,prompt=4,output=2", "--out", str(directory), *arguments),
    )
    done = await asyncio.to_thread(lambda: run_command(*arguments, OMNISERVE_TOKEN=token))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.asyncio
@pytest.mark.parametrize("over", ["grpc", "http"])
async def test_load_is_sent_with_the_token_of_a_file_or_of_the_environment(
    tmp_path: Path, tiny_checkpoint: Path, over: str
) -> None:
    token, out = token_of("acme"), tmp_path / "out"
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"))
    async with serving(service) as servers:
        status, said = await run_load(servers, out, over)
        assert status != 0 and "a token is needed" in said
        for arguments, of_environment in (
            (["--token-file", str(file)], token_of("other")),
            ([], token),
        ):
            status, said = await run_load(servers, out, over, *arguments, token=of_environment)
            assert status == 0, said
            assert "done" in {request.outcome for request in load_run(out).requests}
            written = "".join(path.read_text() for path in out.iterdir())
            assert token not in said + written


def test_a_token_is_not_sent_to_other_machines_without_a_word(tmp_path: Path) -> None:
    token = token_of("acme")
    done = run_command(
        *("bench", "run", "--grpc", "127.0.0.1:1", "--http", "http://server.invalid:1"),
        *("--over", "http", "--backlog", "requests=1", "--out", str(tmp_path)),
        OMNISERVE_TOKEN=token,
    )
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if "warning" in line]
    assert warnings == ["omniserve: warning: the token goes to server.invalid:1 unencrypted"]
    assert token not in done.stdout + done.stderr + repr(Addresses("a:1", token=token))
