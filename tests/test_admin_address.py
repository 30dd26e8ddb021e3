"""Where daemons listen for operators, and how commands find them."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from omniserve import admin_address
from omniserve.admin_address import (
    admin_target_of,
    default_admin_path,
    find_admin_address,
    listening_address,
)
from omniserve.errors import ConfigError, EngineUnavailable

NAME = f"omniserve-{os.geteuid()}"


@pytest.fixture
def places(
    runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Path, Path]]:
    """Of the user, of everyone, of the service; each of this test alone, and short."""
    base = runtime_directory / "p"
    user, shared, service = base / "user", base / "shared", base / "run"
    for directory in (base, user, shared, service):
        directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(user))
    monkeypatch.setattr(admin_address, "_SHARED_DIRECTORY", shared)
    monkeypatch.setattr(admin_address, "SERVICE_SOCKET", service / "admin.sock")
    yield user, shared, service
    for path in sorted(base.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    base.rmdir()


@contextmanager
def listening(path: Path) -> Iterator[str]:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield f"unix:{path}"


def test_the_default_is_in_the_users_directory_by_port(places: tuple[Path, Path, Path]) -> None:
    user, shared, _ = places
    assert default_admin_path(50051) == user / NAME / "admin-50051.sock"
    user.chmod(0o777)
    assert default_admin_path(50051) == shared / NAME / "admin-50051.sock"
    user.chmod(0o700)


def test_a_directory_too_long_for_sockets_is_passed_over(
    places: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user, shared, _ = places
    long = user / ("d" * 90)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert default_admin_path(1) == shared / NAME / "admin-1.sock"


def test_a_service_has_one_socket(
    places: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = places[2]
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{service}:/run/other")
    assert default_admin_path(50051) == service / "admin.sock"
    assert listening_address("auto", 50051) == f"unix:{service}/admin.sock"


def test_listening_makes_a_directory_for_this_user_alone(
    places: tuple[Path, Path, Path],
) -> None:
    directory = places[0] / NAME
    assert listening_address("auto", 7) == f"unix:{directory}/admin-7.sock"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert listening_address("auto", 8) == f"unix:{directory}/admin-8.sock"
    assert listening_address("unix:/elsewhere/a.sock", 8) == "unix:/elsewhere/a.sock"
    directory.chmod(0o770)
    with pytest.raises(ConfigError, match=r"listen\.admin: .* this user alone"):
        listening_address("auto", 7)


def test_a_link_in_place_of_the_directory_is_not_followed(
    places: tuple[Path, Path, Path],
) -> None:
    user, shared, _ = places
    (shared / "trap").mkdir(mode=0o700)
    (user / NAME).symlink_to(shared / "trap")
    with pytest.raises(ConfigError, match="this user alone"):
        listening_address("auto", 7)


def test_the_only_daemon_that_answers_is_found(places: tuple[Path, Path, Path]) -> None:
    user, shared, service = places
    with pytest.raises(EngineUnavailable, match="no daemon of this user answers") as failed:
        find_admin_address(None)
    for place in (service, user, shared):
        assert str(place) in str(failed.value)
    with listening(user / NAME / "admin-1.sock") as first:
        assert find_admin_address(None) == first
        with listening(shared / NAME / "admin-2.sock") as second:
            with pytest.raises(ConfigError, match="several daemons answer") as several:
                find_admin_address(None)
            assert first in str(several.value) and second in str(several.value)
        # Its socket is still there, and nobody answers.
        assert (shared / NAME / "admin-2.sock").is_socket()
        assert find_admin_address(None) == first
        with listening(service / "admin.sock") as of_service:
            assert find_admin_address(None) == of_service


def test_sockets_that_others_may_have_put_there_are_not_used(
    places: tuple[Path, Path, Path],
) -> None:
    user = places[0]
    with listening(user / NAME / "admin-1.sock"):
        (user / NAME).chmod(0o777)
        with pytest.raises(EngineUnavailable, match="no daemon"):
            find_admin_address(None)
        assert admin_target_of("127.0.0.1:1") == f"unix:{user}/{NAME}/admin-1.sock"


def test_what_is_named_counts(
    places: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(places[0] / NAME / "admin-1.sock"):
        monkeypatch.setenv("OMNISERVE_ADMIN", "unix:/run/a b.sock")
        assert find_admin_address(None) == "unix:/run/a%20b.sock"
        assert admin_target_of("127.0.0.1:1") == "unix:/run/a%20b.sock"
        assert find_admin_address("127.0.0.1:5") == "127.0.0.1:5"
        assert find_admin_address("unix:/x") == "unix:/x"


@pytest.mark.parametrize(
    "given", ["", "nowhere", "unix:relative", f"unix:/{'x' * 200}", "a:b:70000"]
)
def test_what_is_no_address_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--admin .*must be unix:/path or host:port"):
        find_admin_address(given)
    if given:
        monkeypatch.setenv("OMNISERVE_ADMIN", given)
        with pytest.raises(ConfigError, match="OMNISERVE_ADMIN .*must be unix:/path or host:port"):
            find_admin_address(None)


def test_the_target_of_a_grpc_address(places: tuple[Path, Path, Path]) -> None:
    user, shared, service = places
    in_user, in_shared = (f"unix:{place}/{NAME}/admin-9.sock" for place in (user, shared))
    with ExitStack() as stack:
        assert admin_target_of("127.0.0.1:9") == in_user
        stack.enter_context(listening(service / "admin.sock"))
        assert admin_target_of("127.0.0.1:9") == f"unix:{service}/admin.sock"
        stack.enter_context(listening(shared / NAME / "admin-9.sock"))
        assert admin_target_of("127.0.0.1:9") == in_shared
        stack.enter_context(listening(user / NAME / "admin-9.sock"))
        assert admin_target_of("[::1]:9") == in_user
        assert admin_target_of("192.0.2.1:9") is None
    with pytest.raises(ConfigError, match="give host:port"):
        admin_target_of("nowhere")


def test_a_service_whose_socket_may_not_be_looked_at_is_passed_over(
    places: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name too long to be looked up is refused to everyone, as a closed directory is to all but
    the superuser."""
    user, _, service = places
    monkeypatch.setattr(admin_address, "SERVICE_SOCKET", service / ("s" * 300))
    assert admin_target_of("127.0.0.1:1") == f"unix:{user}/{NAME}/admin-1.sock"
