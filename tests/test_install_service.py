"""`omniserve install-service`, into directories of its own."""

import json
import os
import stat
from pathlib import Path

import pytest

from omniserve.cli import main
from omniserve.errors import ConfigError
from omniserve.systemd.install_arguments import check_cpus, check_visible

UNITS = "etc/systemd/system"


def install(root: Path, *options: str) -> int:
    executable = ("--executable", "/opt/omniserve/bin/omniserve")
    return main(["install-service", "--root", str(root), *executable, *options])


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    return tmp_path / UNITS / "omniserve.service"


def test_installs_and_tells_what_is_next(
    tmp_path: Path, unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    umask = os.umask(0o077)
    try:
        assert install(tmp_path, "--cpus", "0-1") == 0
    finally:
        os.umask(umask)
    assert "ExecStart=/opt/omniserve/bin/omniserve serve /etc/omniserve/" in unit.read_text()
    assert "CPUAffinity=0-1" in unit.read_text()
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{unit}: wrote"
    assert "  write /etc/omniserve/omniserve.yaml; `omniserve config check`" in lines[2]
    assert "  systemctl enable --now omniserve.service" in lines


def test_again_it_brings_its_own_unit_up_to_date(
    tmp_path: Path, unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "--gpu", "--cpus", "0")
    drop_in = unit.parent / "omniserve.service.d/gpu.conf"
    assert "PrivateDevices=no" in drop_in.read_text()
    assert install(tmp_path, "--gpu", "--cpus", "0") == 0
    assert f"{unit}: left as it is" in capsys.readouterr().out
    assert install(tmp_path) == 0
    assert f"{unit}: replaced" in capsys.readouterr().out
    assert "CPUAffinity" not in unit.read_text()
    assert not drop_in.parent.exists()


@pytest.mark.parametrize("options", [(), ("--uninstall",)])
def test_what_somebody_changed_is_left(
    tmp_path: Path, unit: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path)
    changed = unit.read_text().replace("RestartSec=2", "RestartSec=20")
    unit.write_text(changed)
    assert install(tmp_path, *options) == 2
    assert "--force" in capsys.readouterr().err
    assert unit.read_text() == changed
    assert install(tmp_path, "--force", *options) == 0
    assert not unit.exists() or unit.read_text() != changed


def test_a_mask_is_somebody_elses(tmp_path: Path, unit: Path) -> None:
    unit.parent.mkdir(parents=True)
    unit.symlink_to("/dev/null")
    assert install(tmp_path) == 2
    assert install(tmp_path, "--force") == 0
    assert not unit.is_symlink()
    assert "ExecStart" in unit.read_text()


def test_uninstalls_what_it_wrote_alone(
    tmp_path: Path, unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "--gpu")
    own = unit.parent / "omniserve.service.d/override.conf"
    own.write_text("[Service]\nNice=5\n")
    enabled = unit.parent / "multi-user.target.wants/omniserve.service"
    enabled.parent.mkdir()
    enabled.symlink_to(unit)
    capsys.readouterr()
    assert install(tmp_path, "--uninstall") == 0
    assert "  systemctl stop omniserve.service" in capsys.readouterr().out
    files = [path for path in tmp_path.rglob("*") if path.is_symlink() or path.is_file()]
    assert files == [own]
    assert install(tmp_path, "--uninstall") == 0
    assert "nothing is installed" in capsys.readouterr().out


def test_a_dry_run_prints_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path, "--dry-run", "--gpu") == 0
    out = capsys.readouterr().out
    assert "Type=notify" in out
    assert "DeviceAllow=char-nvidia* rw" in out
    assert list(tmp_path.iterdir()) == []


def test_json(tmp_path: Path, unit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (file,) = found["files"]
    assert (file["path"], file["action"], file["text"]) == (str(unit), "write", unit.read_text())
    assert "systemctl daemon-reload" in found["next"]


def test_where_nothing_can_be_written_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "etc").write_text("in the way")
    assert install(tmp_path) == 1
    assert capsys.readouterr().err.startswith("omniserve: cannot write ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--config", "relative.yaml"),
        ("--config", "/etc/with space.yaml"),
        ("--config", "/etc/%n.yaml"),
        ("--config", "/etc/x\nExecStartPre=/bin/sh"),
        ("--config", "/etc/../root/x.yaml"),
        ("--config", "/etc/omniserve/"),
        ("--executable", "/opt/$HOME/omniserve"),
        ("--executable", ""),
        ("--cpus", "0-"),
        ("--cpus", "3-1"),
        ("--cpus", "0,,1"),
        ("--cpus", "99999"),
        ("--cpus", "0\n1"),
        ("--cpus", "٣"),
    ],
)
def test_what_would_mean_something_else_in_a_unit_is_refused(
    tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--executable", "/opt/omniserve", option, value]
    assert main(["install-service", "--root", str(tmp_path), *arguments]) == 2
    assert option in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_cpus_that_are_not_there_are_refused() -> None:
    assert check_cpus("0,2-3", {0, 1, 2, 3}) == "0,2-3"
    with pytest.raises(ConfigError, match="CPU 4, 5 is not there"):
        check_cpus("3-5", {0, 1, 2, 3})


@pytest.mark.parametrize("directory", ["/home/alice", "/root", "/run/user/1000", "/tmp"])
def test_what_services_do_not_see_is_refused(directory: str) -> None:
    with pytest.raises(ConfigError, match="services do not see"):
        check_visible("--executable", Path(directory, "omniserve"))


def test_a_way_through_a_closed_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_visible("--executable", Path("/usr/bin/env"))
    monkeypatch.setattr("omniserve.systemd.install_arguments.HIDDEN", ())
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    executable = closed / "omniserve"
    executable.touch(mode=0o755)
    with pytest.raises(ConfigError, match="other users may not enter or read"):
        check_visible("--executable", executable)
