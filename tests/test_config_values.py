"""Sizes and addresses, as files have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.config_values import (
    format_size,
    is_loopback,
    join_address,
    parse_size,
    split_address,
)


@pytest.mark.parametrize(
    ("written", "num_bytes"),
    [
        (1, 1),
        ("1KiB", 1024),
        ("1.5 MiB", 1572864),
        ("0.5KiB", 512),
        ("3GiB", 3 * 1024**3),
        ("0.001KiB", None),
        (0, None),
        (-1, None),
        ("0MiB", None),
        (True, None),
        (1.5, None),
        ("64", None),
        ("64MB", None),
        ("64mib", None),
        ("1e3KiB", None),
        ("-1KiB", None),
        ("999999999999999GiB", None),
        (None, None),
    ],
)
def test_sizes(written: object, num_bytes: int | None) -> None:
    if num_bytes is None:
        with pytest.raises(ValueError, match="must be"):
            parse_size(written)
    else:
        assert parse_size(written) == num_bytes


@given(st.integers(min_value=1, max_value=1 << 50))
def test_a_formatted_size_reads_as_the_same_size(num_bytes: int) -> None:
    assert parse_size(format_size(num_bytes)) == num_bytes


@pytest.mark.parametrize(
    ("address", "parts", "loopback"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000), True),
        ("localhost:0", ("localhost", 0), True),
        ("[::1]:65535", ("::1", 65535), True),
        ("0.0.0.0:80", ("0.0.0.0", 80), False),
        ("[::]:80", ("::", 80), False),
        ("10.1.2.3:80", ("10.1.2.3", 80), False),
        ("host-1.example.org:80", ("host-1.example.org", 80), False),
    ],
)
def test_addresses(address: str, parts: tuple[str, int], loopback: bool) -> None:
    assert split_address(address) == parts
    assert join_address(*parts) == address
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    "address",
    ["", "8000", ":8000", "host", "host:", "host:x", "host:-1", "host:65536", "::1:80", "[::1]",
     "[::1:80", "127.0.0.300:80", "127.1:80", "a b:80", "http://host:80", "unix:/tmp/x", "a:٣"],
)  # fmt: skip
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(ValueError):
        split_address(address)
