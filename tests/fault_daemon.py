"""A daemon over a scripted engine that tests do harm to, and what has to be well afterwards."""

import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import yaml
from daemon_process import PATIENCE_S, DaemonProcess

from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

SCRIPT = str(Path(__file__).parent / "scripted_daemon.py")
TIERS: tuple[dict[str, Any], ...] = (
    {"name": "chat", "class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 100},
    {"name": "batch", "class": "best_effort"},
)
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that lets close() send RST, as from a machine that is gone."""


def write_patient_config(directory: Path, checkpoint: Path) -> Path:
    """Of a daemon that takes no engine for dead that has to wait for its turn."""
    daemon = {"engine_heartbeat_s": 60, "shutdown_grace_s": 5}
    return write_config(directory, checkpoint, daemon=daemon)


def write_config(directory: Path, checkpoint: Path, **sections: Any) -> Path:
    """One model, `echo`, with a context of 65,536 tokens; `sections` are of the file."""
    listen = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "admin": f"unix:{directory}/a.sock"}
    models = [{"name": "echo", "path": str(checkpoint), "max_model_len": 65_536}]
    data: dict[str, Any] = {"listen": listen, "models": models, "tiers": list(TIERS)}
    data["daemon"] = {"shutdown_grace_s": 5}
    path = directory / "omniserve.yaml"
    path.write_text(yaml.safe_dump(data | sections))
    return path


@dataclass(frozen=True, slots=True)
class FaultDaemon:
    process: DaemonProcess
    grpc_address: str
    url: str
    admin: str
    """The gRPC target of its Admin service."""

    @property
    def http_address(self) -> tuple[str, int]:
        return split(self.url.removeprefix("http://"))

    @property
    def front(self) -> psutil.Process:
        return psutil.Process(self.process.process.pid)

    def status(self) -> pb.Status:
        with grpc.insecure_channel(self.admin) as channel:
            stub = omniserve_pb2_grpc.AdminStub(channel)
            status = stub.GetStatus(pb.GetStatusRequest(), timeout=PATIENCE_S, wait_for_ready=True)
            assert isinstance(status, pb.Status)
            return status

    @property
    def num_running(self) -> int:
        """Sequences in the engine, as it said last."""
        (model,) = self.status().models
        return sum(model.running.values())

    def check_well(self, token: str | None = None) -> None:
        """Serves over both protocols, and the engine has nothing left over from before."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        wait_for(lambda: completion(self.url, headers=headers).status_code == 200)
        with grpc.insecure_channel(self.grpc_address) as channel:
            stub = omniserve_pb2_grpc.InferenceStub(channel)
            metadata = tuple(headers.items())
            result = stub.Complete(make_request(3), timeout=PATIENCE_S, metadata=metadata)
            assert len(result.choices[0].token_ids) == 3
        wait_for(lambda: self.num_running == 0)

    def wait_descriptors(self, at_most: int) -> None:
        """Until the front has no more open files and sockets than this."""
        wait_for(lambda: self.front.num_fds() <= at_most)


@contextmanager
def fault_daemon(
    config: Path, *engine_options: str, serve_options: tuple[str, ...] = ()
) -> Iterator[FaultDaemon]:
    """At the end it has to stop in peace, without ever having met what it did not expect."""
    with DaemonProcess(SCRIPT, str(config), *engine_options, "--", *serve_options) as process:
        grpc_address, url = process.wait_ready()
        admin = str(yaml.safe_load(config.read_text())["listen"]["admin"])
        yield FaultDaemon(process, grpc_address, url, admin)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log[-5000:]
        assert "Traceback" not in process.log, process.log[-5000:]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.02)


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def make_request(num_tokens: int, **fields: Any) -> pb.GenerateRequest:
    """The scripted engine answers with the prompt itself."""
    ids = pb.TokenIds(ids=[number % 4000 for number in range(num_tokens)])
    return pb.GenerateRequest(model="echo", token_ids=ids, **fields)


def make_body(num_tokens: int, **fields: Any) -> dict[str, Any]:
    prompt = [number % 4000 for number in range(num_tokens)]
    return {"model": "echo", "prompt": prompt, "max_tokens": num_tokens} | fields


def completion(url: str, num_tokens: int = 3, headers: Any = None, **fields: Any) -> httpx.Response:
    body = make_body(num_tokens, **fields)
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=PATIENCE_S)


def connect(address: tuple[str, int], data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, timeout=PATIENCE_S)
    if data:
        connection.sendall(data)
    return connection


def reset(connection: socket.socket) -> None:
    """Ends a connection without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def is_closed(connection: socket.socket) -> bool:
    """Reads until the other side has closed; False where it does not within patience."""
    with connection:
        try:
            while connection.recv(65_536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
    return True


def http_post(body: bytes, *, path: str = "/v1/completions", headers: str = "") -> bytes:
    """A whole request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
