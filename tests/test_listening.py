"""What is said and checked of addresses before anything listens."""

import socket
from pathlib import Path
from typing import Any

import pytest
from service_builders import make_config

from omniserve.config import Config
from omniserve.config_listen import TlsConfig
from omniserve.config_tenant import TenantConfig
from omniserve.errors import ConfigError
from omniserve.listening import check_free, listening_warnings, status_address

TENANTS = (TenantConfig(name="someone", token_sha256=("0" * 64,)),)
TLS = TlsConfig(certificate="a", key="b")


def config_with(*, listen: dict[str, str], **parts: Any) -> Config:
    config = make_config(Path("/demo"))
    places = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"} | listen
    return config.model_copy(update={"listen": config.listen.model_copy(update=places), **parts})


def test_tokens_in_clear_are_warned_of() -> None:
    for listen, words in (
        ({"grpc": "0.0.0.0:1", "http": "[::]:2"}, "listen.grpc = 0.0.0.0:1 and listen.http"),
        ({"http": "example.org:2"}, "listen.http = example.org:2: open to the network"),
    ):
        (warning,) = listening_warnings(config_with(listen=listen, tenants=TENANTS))
        assert words in warning and "not encrypted" in warning
        assert not listening_warnings(config_with(listen=listen, tenants=TENANTS, tls=TLS))
    assert not listening_warnings(config_with(listen={}, tenants=TENANTS))


def test_where_the_status_page_is() -> None:
    assert status_address(config_with(listen={})) is None
    assert status_address(config_with(listen={}, tenants=TENANTS)) == "127.0.0.1:8001"
    listen = {"status": "127.0.0.1:7"}
    assert status_address(config_with(listen=listen)) == "127.0.0.1:7"
    assert status_address(config_with(listen=listen, tenants=TENANTS)) == "127.0.0.1:7"


@pytest.mark.parametrize("key", ["grpc", "http", "admin", "status"])
def test_addresses_in_use_are_named(key: str) -> None:
    check_free(config_with(listen={}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"listen.{key}: cannot listen on {address}"):
            check_free(config_with(listen={key: address}))
    check_free(config_with(listen={"admin": "unix:/not/there"}))
