"""`omniserve simulate run` and `roofline`, from arguments to files."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
from simulate_builders import backlog, chats, make_profile

from omniserve.bench.load.streams import TraceStream
from omniserve.bench.run_files import load_run
from omniserve.config import Config, load_config
from omniserve.errors import ConfigError
from omniserve.profiling.profile import load_profile, save_profile
from omniserve.simulate.command import add_simulate_commands
from omniserve.simulate.resolve import profile_by_model, resolve_streams, scaled

CONFIG = """
device: {kind: cpu}
models:
  - {name: m, path: nowhere, default_tier: batch, device_kv_bytes: 8MiB}
  - {name: other, path: nowhere}
tiers:
  - {name: chat, class: latency_sensitive, ttft_ms: 100, tpot_ms: 30}
  - {name: batch, class: best_effort}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """With config.yaml and profile.json."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    save_profile(make_profile(), tmp_path / "profile.json")
    return tmp_path


def simulate(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_simulate_commands(parser.add_subparsers(required=True))
    args = parser.parse_args(["simulate", *arguments])
    return int(args.handler(args))


def test_run_writes_what_a_real_run_would(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = files / "trace.csv"
    rows = (f"2023-11-16 18:15:{second:02}.5000000,{100 + second},12" for second in range(20))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    status = simulate(
        *("run", "--config", f"{files / 'config.yaml'}", "--profile", f"{files / 'profile.json'}"),
        *("--stream", f"name=chat,trace={trace},tier=chat", "--rate", "2"),
        *("--backlog", "name=batch,requests=3,prompt=50,output=20"),
        *("--warm-up-s", "0", "--out", f"{files / 'out'}"),
    )
    assert status == 0
    record = load_run(files / "out")
    arrivals = [each.scheduled_s for each in record.requests if each.stream == "chat"]
    # 19 seconds between the first and the last, at twice the speed; the last one is part of it.
    assert record.duration_s == pytest.approx(9.5, abs=0.01)
    assert arrivals == pytest.approx([second / 2 for second in range(20)])
    assert [each.ttft_ms for each in record.streams] == [100, None]
    assert record.facts["simulated"] is True
    assert json.loads((files / "out/summary.json").read_text())
    assert "<html" in (files / "out/report.html").read_text()
    assert "simulated" in capsys.readouterr().out


def test_equal_arguments_give_equal_files_and_what_is_left_out_is_said(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_profile(make_profile(host=None), files / "profile.json")
    inputs = ("--config", f"{files / 'config.yaml'}", "--profile", f"{files / 'profile.json'}")
    for name in ("one", "two"):
        out = ("--out", f"{files / name}", "--title", "t")
        simulate("run", *inputs, *out, "--backlog", "requests=1", "--duration-s", "1")
        assert "knows no host attention" in " ".join(capsys.readouterr().out.split())
    for path in (files / "one").iterdir():
        assert path.read_bytes() == (files / "two" / path.name).read_bytes()


def test_a_directory_that_cannot_be_made_is_named(files: Path) -> None:
    inputs = ("--config", f"{files / 'config.yaml'}", "--profile", f"{files / 'profile.json'}")
    with pytest.raises(ConfigError, match="--out .*config.yaml/out: cannot be made"):
        simulate("run", *inputs, "--backlog", "requests=1", "--out", f"{files}/config.yaml/out")


def test_summary_only_leaves_the_run_out(files: Path) -> None:
    common = ("run", "--config", f"{files / 'config.yaml'}", "--out", f"{files / 'out'}")
    profile = ("--profile", f"{files / 'profile.json'}")
    simulate(*common, *profile, "--backlog", "requests=1", "--duration-s", "1", "--summary-only")
    assert sorted(path.name for path in (files / "out").iterdir()) == [
        "report.html",
        "summary.json",
    ]


def test_roofline_of_five_numbers(tmp_path: Path) -> None:
    path = tmp_path / "new/profile.json"
    sizes = ("--parameters", "7e9", "--layers", "32", "--heads", "32", "--kv-heads", "8")
    simulate("roofline", *sizes, "--head-dim", "128", "--name", "big", "--out", f"{path}")
    profile = load_profile(path)
    assert (profile.model, profile.num_layers) == ("big", 32)
    # Keys and values of 8 heads of 128 elements of 2 bytes in 32 layers.
    assert profile.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert profile.launch_s == 2e-3
    # The weights are read once a step: 14 GB at four fifths of 3.35 TB/s.
    assert profile.step_time.alone.dense_s(1) == pytest.approx(14e9 / (0.8 * 3.35e12), rel=0.01)


def test_roofline_says_which_number_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--layers"):
        simulate("roofline", "--parameters", "7e9", "--out", f"{tmp_path / 'p.json'}")


def config_of(files: Path) -> Config:
    return load_config(files / "config.yaml")


def test_streams_mean_what_a_daemon_would_understand(files: Path) -> None:
    def stream(tier: str, model: str = "") -> TraceStream:
        plain = chats([(1.0, 10, 5)])
        info = replace(plain.info, tier=tier, model=model, ttft_ms=None, tpot_ms=None)
        return replace(plain, info=info)

    streams = [stream(""), stream("priority"), stream("", "other")]
    resolved = [each.info for each in resolve_streams(streams, config_of(files))]
    assert [(each.model, each.service_class, each.ttft_ms) for each in resolved] == [
        ("m", "best_effort", None),
        ("m", "latency_sensitive", 100),
        ("other", "latency_sensitive", 100),
    ]
    for wrong, said in ((stream("gold"), "chat, batch"), (stream("", "x"), "m, other")):
        with pytest.raises(ConfigError, match=said):
            resolve_streams([wrong], config_of(files))


def test_scaling_leaves_backlogs_alone() -> None:
    trace, documents = scaled([chats([(3.0, 10, 5)]), backlog(2)], rate=3.0)
    assert isinstance(trace, TraceStream)
    assert trace.trace.requests[0].arrival_s == pytest.approx(1.0)
    assert documents == backlog(2)


def test_one_profile_serves_all_models_and_several_go_by_name(files: Path) -> None:
    config, profile = config_of(files), make_profile()
    assert set(profile_by_model([profile], config)) == {"m", "other"}
    with pytest.raises(ConfigError, match="two profiles are of model 'm'"):
        profile_by_model([profile, profile], config)
    with pytest.raises(ConfigError, match="'nobody' is not configured; allowed: m, other"):
        profile_by_model([profile, replace(profile, model="nobody")], config)
