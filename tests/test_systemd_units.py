"""The unit files: what is filled in, and what systemd's own checks say of them."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from omniserve.systemd.unit_files import GPU_DROP_IN, UNIT, UnitSettings, is_ours, unit_files

PLAIN = UnitSettings("/bin/true", "/etc/omniserve/omniserve.yaml")
ROOT = Path(__file__).resolve().parents[1]
MOST_EXPOSURE = 20
"""In tenths."""

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def settings_of(text: str) -> dict[str, list[str]]:
    """Every value of every key, in order; sections do not share keys here."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            values.setdefault(key, []).append(value)
    return values


def write_units(directory: Path, settings: UnitSettings) -> Path:
    for name, text in unit_files(settings).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory / UNIT


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_what_differs_between_machines_is_filled_in() -> None:
    settings = UnitSettings("/opt/omniserve/bin/omniserve", "/etc/llm.yaml", cpus="0-3,8")
    (unit,) = unit_files(settings).values()
    found = settings_of(unit)
    assert found["ExecStart"] == ["/opt/omniserve/bin/omniserve serve /etc/llm.yaml"]
    assert found["ExecReload"] == ["/opt/omniserve/bin/omniserve reload"]
    assert found["CPUAffinity"] == ["0-3,8"]
    assert "@EXECUTABLE@" not in unit


def test_without_cpus_there_is_no_affinity() -> None:
    """An empty one would not mean the same in a drop-in."""
    assert "CPUAffinity" not in settings_of(unit_files(PLAIN)[UNIT])


def test_only_a_gpu_needs_the_drop_in() -> None:
    assert set(unit_files(PLAIN)) == {UNIT}
    with_gpu = unit_files(UnitSettings("/bin/true", "/etc/x.yaml", has_gpu=True))
    assert set(with_gpu) == {UNIT, GPU_DROP_IN}
    assert settings_of(with_gpu[GPU_DROP_IN])["PrivateDevices"] == ["no"]


def test_kernels_can_be_compiled_and_secrets_are_not_dumped() -> None:
    found = settings_of(unit_files(PLAIN)[UNIT])
    assert "MemoryDenyWriteExecute" not in found
    assert found["LimitCORE"] == ["0"]
    assert found["Type"] == ["notify"]


def test_an_edit_is_noticed() -> None:
    for text in unit_files(UnitSettings("/bin/true", "/x", has_gpu=True)).values():
        assert is_ours(text)
        assert not is_ours(text + "Nice=5\n")
        assert not is_ours(text.replace("[Service]", "[Service]\nNice=5"))
    assert not is_ours("")
    assert not is_ours("[Service]\nExecStart=/bin/true\n")


@needs_systemd_analyze
@pytest.mark.parametrize("has_gpu", [False, True])
def test_systemd_finds_nothing_wrong(tmp_path: Path, has_gpu: bool) -> None:
    unit = write_units(tmp_path, UnitSettings("/bin/true", "/x", cpus="0", has_gpu=has_gpu))
    done = analyze("verify", "--man=no", unit)
    mine = [line for line in (done.stdout + done.stderr).splitlines() if "omniserve" in line]
    assert (done.returncode, mine) == (0, [])


@needs_systemd_analyze
@pytest.mark.parametrize("has_gpu", [False, True])
def test_the_exposure_is_small(tmp_path: Path, has_gpu: bool) -> None:
    unit = write_units(tmp_path, UnitSettings("/bin/true", "/x", has_gpu=has_gpu))
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout + done.stderr
    # The same unit without its sandbox: that the tool would have noticed.
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    shutil.rmtree(tmp_path / f"{UNIT}.d", ignore_errors=True)
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", unit)
    assert done.returncode != 0


def test_the_templates_are_shipped() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = [each.strip() for each in setup["options.package_data"]["omniserve"].split(",")]
    templates = sorted((ROOT / "omniserve/systemd/units").iterdir())
    assert len(templates) == 2
    for template in templates:
        name = template.relative_to(ROOT / "omniserve")
        assert any(name.match(pattern) for pattern in patterns), name
