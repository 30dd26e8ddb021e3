"""`omniserve profile`: what it measures, keeps, prints and draws, and what Ctrl-C leaves of it."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import psutil
import pytest
from daemon_fixture import config_text
from daemon_process import PATIENCE_S, DaemonProcess
from profiling_builders import TINY_EFFORT, make_profile

from omniserve.cache_directory import VARIABLE
from omniserve.cli import main
from omniserve.profile_command import _print
from omniserve.profiling import profiler
from omniserve.profiling.accuracy import accuracy_of, thinned
from omniserve.profiling.judged_steps import JudgedSteps
from omniserve.profiling.page import render_profile_page
from omniserve.profiling.profile import Profile, load_profile
from omniserve.profiling.terms import accuracy_table, host_lines, slowdown_of, terms_table
from omniserve.terminal import make_console
from scheduler.step_time import LinearStepTime, StepCosts


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def config(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With step times of a file that is not there yet, as the first run has to make it."""
    thorough = msgspec.structs.replace(TINY_EFFORT, name="thorough")
    monkeypatch.setattr(profiler, "QUICK", TINY_EFFORT)
    monkeypatch.setattr(profiler, "THOROUGH", thorough)
    monkeypatch.chdir(tmp_path)
    text = config_text(tiny_checkpoint, "{enabled: false}").replace(
        "step_times: none", "step_times: measured.json"
    )
    (tmp_path / "config.yaml").write_text(text.replace("threads: 2", "threads: 1"))
    return tmp_path / "config.yaml"


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "profiles").iterdir()) if (cache / "profiles").exists() else []


class TestCommand:
    def test_it_is_measured_once_and_shown(
        self, cache: Path, config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["profile", "--config", str(config), "--quick"]
        assert main([*arguments, "--out", "measured.json", "--show"]) == 0
        said = capsys.readouterr().out
        assert "steps on all cores: 100%" in said
        assert "LM head and sampler, a row" in said
        (path,) = kept(cache)
        assert f"kept: {path}" in said.splitlines()
        profile = load_profile(path)
        assert load_profile(Path("measured.json")) == profile
        assert profile.measured_on is not None and profile.measured_on.key == path.stem
        assert ElementTree.parse("out/profile.html").getroot().tag == "html"

        assert main(arguments) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"measured on {profile.measured_at}; --force measures anew")
        assert "all cores: 100%" not in said
        assert load_profile(path) == profile

        # What was measured quickly is not as good as what is asked for now.
        assert main(arguments[:-1]) == 0
        assert "steps on all cores: 100%" in capsys.readouterr().out
        (path,) = kept(cache)
        assert load_profile(path).effort == "thorough"

    def test_it_is_measured_anew_where_that_is_asked_for(
        self, cache: Path, config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["profile", "--config", str(config), "--quick", "--force"]
        for _ in range(2):
            assert main(arguments) == 0
            assert "steps on all cores: 100%" in capsys.readouterr().out
        assert len(kept(cache)) == 1

    def test_a_model_that_is_not_configured_is_named(
        self, cache: Path, config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["profile", "--config", str(config), "--model", "nobody"]) == 2
        assert "--model: 'nobody' is not configured; allowed: demo" in capsys.readouterr().err
        assert kept(cache) == []

    def test_what_cannot_be_written_is_named(
        self, cache: Path, config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for option, path in (("--out", config / "p.json"), ("--show", config.parent)):
            assert main(["profile", "--config", str(config), option, str(path)]) == 2
            printed = capsys.readouterr()
            assert f"{option} {path}: cannot be written" in printed.err
            assert printed.out == "", "nothing is measured for nothing"

    def test_ctrl_c_leaves_nothing_behind(self, cache: Path, config: Path) -> None:
        arguments = ("profile", "--config", str(config), "--out", "p.json", "--show", "p.html")
        with DaemonProcess("-m", "omniserve", *arguments) as process:
            assert process.process.stdout is not None
            line = process.process.stdout.readline()
            assert line.startswith("steps on all cores"), process.log
            children = psutil.Process(process.process.pid).children(recursive=True)
            assert children
            process.signal(signal.SIGINT)
            assert process.wait() == 130
            _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
            assert alive == []
            assert "Traceback" not in process.log
            assert list(process.temp_dir.glob("omniserve*")) == []
        assert kept(cache) == []
        assert sorted(os.listdir(config.parent)) == ["config.yaml"]


class TestShown:
    def test_accuracy_is_of_each_kind_of_steps(self) -> None:
        rows = {row[0]: row[1:] for row in accuracy_table(make_profile()).rows}
        assert rows["host idle"] == ["20", "98.0%", "98.0%"]
        assert rows["host active, its cores left"] == ["20", "92.0%", "92.0%"]
        assert rows["host active, with its rows"] == ["20", "80.0%", "80.0%"]

    def test_nine_steps_of_ten_reach_the_p90(self) -> None:
        good, bad = (make_profile().judged.alone, make_profile().judged.with_lanes)
        accuracy = accuracy_of([*good[:9], bad[0]])
        assert accuracy is not None
        assert accuracy.mean == pytest.approx(0.9 * 0.98 + 0.1 * 0.8)
        assert 0.96 <= accuracy.p90 <= 0.98
        assert accuracy_of([]) is None

    def test_few_of_many_are_kept(self) -> None:
        steps = make_profile().judged.alone
        assert thinned(steps, 20) == steps
        assert thinned(steps, 7) == steps[::3]
        assert thinned((), 7) == ()

    def test_terms_have_units(self) -> None:
        rows = {row[0]: row[1:] for row in terms_table(make_profile()).rows}
        assert rows["LM head and sampler, a row"] == ["us", "2", "0"]
        assert rows["prefill attention, a pair of tokens"] == ["ns", "2", "0"]
        assert rows["dense layers, 512 rows"] == ["ms", "30", "90"]

    def test_one_row_is_one_row(self) -> None:
        costs = StepCosts(overhead_s=0.001, dense_ladder=((1, 0.001), (2, 0.002)))
        table = terms_table(replace(make_profile(), step_time=LinearStepTime(costs)))
        names = [row[0] for row in table.rows]
        assert names[-2:] == ["dense layers, 1 row", "dense layers, 2 rows"]

    def test_an_accuracy_that_nothing_tells_is_said_to_be_unknown(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _print(make_console(), replace(make_profile(), judged=JudgedSteps()))
        assert "not fitted to: not known, as each of these was disturbed" in capsys.readouterr().out

    def test_the_host_is_told_of_with_what_it_costs(self) -> None:
        profile = make_profile()
        slowdown = slowdown_of(profile)
        assert slowdown is not None and slowdown > 1.5
        assert any(f"{slowdown:.2f} times as long" in line for line in host_lines(profile))

    def test_the_page_shows_all_of_it(self) -> None:
        page = ElementTree.fromstring(render_profile_page(make_profile()).partition("\n")[2])
        titles = ["".join(each.itertext()) for each in page.iter("h3")]
        for wanted in ("Host idle", "Host active", "All cores"):
            assert wanted in titles
        assert len(list(page.iter("svg"))) == 4
        text = "".join(page.itertext())
        assert "98.0%" in text and "a processor" in text

    @pytest.mark.parametrize("name", ["judged", "host", "measured_on"])
    def test_what_is_not_known_is_not_shown(self, name: str) -> None:
        whole = make_profile()
        kept = {
            each: getattr(whole, each)
            for each in ("model", "device", "num_layers", "kv_bytes_per_token", "max_positions")
        }
        others = {"judged", "host", "measured_on"} - {name}
        profile = Profile(
            **kept,
            step_time=whole.step_time,
            **{each: getattr(whole, each) for each in others},
        )
        ElementTree.fromstring(render_profile_page(profile).partition("\n")[2])
