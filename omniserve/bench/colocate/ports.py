"""Ports for servers that cannot take a free one by themselves."""

import socket


def free_port() -> int:
    """A port of the loopback interface that is free now; somebody else may take it meanwhile."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
