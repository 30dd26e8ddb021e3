"""What configuration files may say, and what it means."""

import json
from pathlib import Path

import pytest
import yaml
from config_files import MINIMAL, MODELS, TIERS, write
from pydantic import ValidationError

from omniserve.cli import main
from omniserve.config import Config, load_config
from omniserve.machine import Machine
from omniserve.settings import ModelSettings, PiggybackSettings

DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"


def test_the_example_says_what_its_readers_rely_on() -> None:
    config = load_config(DEMO)
    assert (config.listen.grpc, config.listen.http) == ("127.0.0.1:50051", "127.0.0.1:8000")
    assert config.device.kind == "auto"
    (model,) = config.models
    assert model.name == "demo"
    assert model.path == str(DEMO.parent / "models" / "demo")
    assert model.dtype == "bfloat16"
    assert model.device_kv_bytes == 64 * 1024 * 1024
    interactive, batch = config.tiers
    assert (interactive.name, interactive.service_class) == ("interactive", "latency_sensitive")
    assert (interactive.ttft_ms, interactive.tpot_ms, interactive.percentile) == (500, 100, 99)
    assert (batch.name, batch.service_class, batch.ttft_ms) == ("batch", "best_effort", None)


def test_without_step_times_tokens_limit_best_effort_work(tmp_path: Path) -> None:
    text = "models: [{name: a, path: b, step_times: none}]\n" + TIERS
    (model,) = load_config(write(tmp_path, text)).engine_settings().models
    assert (model.best_effort_tokens_beside_ls, model.measures_step_time) == (64, False)


def test_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.listen.grpc, config.listen.http) == ("127.0.0.1:50051", "127.0.0.1:8000")
    assert config.device.threads is None
    assert config.daemon.shutdown_grace_s == 30
    settings = config.engine_settings(Machine(4, 16 << 30, 8 << 30))
    defaults = ModelSettings(
        "demo",
        str(tmp_path / "models/demo"),
        best_effort_tokens_beside_ls=512,
        piggyback=PiggybackSettings(host_kv_bytes=2 << 30, max_lane_rows_beside_ls=64),
        kv_reserve_share=0.05,
        measures_step_time=True,
    )
    assert settings.models == (defaults,)
    assert settings.device.kind == "auto"


def test_every_model_setting_reaches_the_engine(tmp_path: Path) -> None:
    text = """\
device: {kind: cpu, threads: 3}
models:
  - name: org/model-7b.v2
    path: /elsewhere
    dtype: float32
    device_kv_bytes: 1.5KiB
    max_model_len: 100
    default_tier: batch
    max_step_tokens: 200
    best_effort_tokens_beside_ls: 20
    max_running_requests: 10
    block_size: 16
    prefix_caching: false
    piggyback:
      enabled: true
      host_kv_bytes: 3MiB
      host_attention_threads: 2
      max_offloaded_requests: 30
      max_lane_rows: 20
      max_lane_rows_beside_ls: 10
      max_resident_decodes: 0
      binding_points: 4
      when: always
tiers:
  - {name: chat, class: latency_sensitive, ttft_ms: 1, tpot_ms: 0.5}
  - {name: batch, class: best_effort}
"""
    machine = Machine(3, 1 << 30, 1 << 30)
    config = load_config(write(tmp_path, text), machine)
    settings = config.engine_settings(machine)
    assert (settings.device.kind, settings.device.threads) == ("cpu", 3)
    (model,) = settings.models
    assert model.name == "org/model-7b.v2"
    assert model.path == "/elsewhere"
    assert model.dtype == "float32"
    assert model.device_kv_bytes == 1536
    assert model.max_model_len == 100
    assert model.max_step_tokens == 200
    assert model.best_effort_tokens_beside_ls == 20
    assert model.max_running_requests == 10
    assert model.block_size == 16
    assert model.prefix_caching is False
    assert model.piggyback == PiggybackSettings(
        host_kv_bytes=3 << 20,
        host_attention_threads=2,
        max_offloaded_requests=30,
        max_lane_rows=20,
        max_lane_rows_beside_ls=10,
        max_resident_decodes=0,
        binding_points=4,
        when="always",
    )
    assert config.default_tier("org/model-7b.v2").name == "batch"
    assert config.tiers[0].percentile == 99


def test_the_first_tier_is_the_default_of_a_model_that_names_none(tmp_path: Path) -> None:
    text = MODELS + "tiers: [{name: b, class: best_effort}, {name: a, class: best_effort}]"
    config = load_config(write(tmp_path, text))
    assert config.default_tier("demo").name == "b"
    assert config.tier("a") is config.tiers[1]
    assert config.tier("c") is None


def test_relative_paths_start_at_the_file_not_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    write(tmp_path / "etc", MINIMAL.replace("models/demo", "../models/demo"))
    monkeypatch.chdir(tmp_path)
    config = load_config("etc/omniserve.yaml")
    assert config.models[0].path == str(tmp_path / "models" / "demo")


def test_an_adapter_has_a_base_whose_path_starts_at_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = "{name: support, path: support, base: ../base}, {name: plain, path: plain}"
    file = write(tmp_path, f"models: [{entries}]\n" + TIERS)
    config = load_config(file)
    support, plain = config.engine_settings().models
    assert support.path == support.adapter_path == str(tmp_path / "support")
    assert support.base == support.checkpoint_path == str(tmp_path.parent / "base")
    assert plain.base is plain.adapter_path is None and plain.checkpoint_path == plain.path
    assert main(["config", "check", str(file), "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    for key, name in (("path", tmp_path / "support"), ("base", tmp_path.parent / "base")):
        assert any(each.startswith(f"models[0].{key} = '{name}': no such") for each in warnings)
    again = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True))
    assert load_config(write(tmp_path, again)) == config


def test_the_example_of_three_models_leaves_memory_that_is_nobodys_floor() -> None:
    config = load_config(DEMO.with_name("models.yaml"))
    settings = config.engine_settings()
    assert [model.name for model in settings.models] == ["chat", "support", "batch"]
    assert [config.default_tier(model.name).name for model in settings.models] == [
        *("interactive", "interactive", "batch")
    ]
    budget = settings.device.kv_bytes
    assert budget is not None
    floors = [model.device_kv_floor_bytes for model in settings.models]
    assert floors == [64 << 20, 32 << 20, 0] and 96 << 20 <= budget - (96 << 20)
    assert all(model.device_kv_bytes <= budget for model in settings.models)


def test_what_is_shown_means_the_same_when_read_again(tmp_path: Path) -> None:
    config = load_config(DEMO)
    shown = config.model_dump(mode="json", exclude_none=True)
    assert shown["models"][0]["device_kv_bytes"] == "64MiB"
    again = load_config(write(tmp_path, yaml.safe_dump(shown)))
    assert again == config


def test_the_schema_knows_every_key_and_refuses_others() -> None:
    schema = Config.model_json_schema()
    text = json.dumps(schema)
    assert schema["required"] == ["models", "tiers"]
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False
    assert set(schema["$defs"]["TierConfig"]["properties"]) == {
        "name",
        "class",
        "ttft_ms",
        "tpot_ms",
        "percentile",
        "admission",
        "fallback",
        "max_waiting",
        "default_model",
        "demote_after_tokens",
        "sleep_after_s",
    }
    assert "Checkpoint directory in Hugging Face layout" in text


def test_a_byte_order_mark_and_dates_are_plain_text(tmp_path: Path) -> None:
    text = MINIMAL.replace("name: demo", "name: 2026-11-20")
    config = load_config(write(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert config.models[0].name == "2026-11-20"


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    with pytest.raises(ValidationError, match="frozen"):
        config.models[0].name = "other"


def test_the_manual_lists_every_key() -> None:
    manual = (DEMO.parents[1] / "docs" / "configuration.md").read_text()
    for name, section in Config.model_json_schema()["$defs"].items():
        heading = name.removesuffix("Config").lower()
        _, _, rest = manual.partition(f"\n### {heading}")
        table = rest.partition("\n#")[0]
        listed = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
        assert listed == set(section["properties"]), name


@pytest.mark.parametrize("path", ["~nobody-here/model", "circle/model"])
def test_a_path_that_leads_nowhere_is_left_to_whoever_reads_it(tmp_path: Path, path: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (model,) = load_config(write(tmp_path, f"models: [{{name: a, path: {path}}}]\n" + TIERS)).models
    assert model.path == str(tmp_path / path)


def test_what_config_show_prints_of_the_admin_address_is_allowed(tmp_path: Path) -> None:
    text = "listen: {admin: auto}\n" + MODELS + TIERS
    assert load_config(write(tmp_path, text)).listen.admin == "auto"


def test_floors_may_be_nothing_and_reach_the_engine(tmp_path: Path) -> None:
    text = "device: {kv_bytes: 40MiB}\nmodels:\n" + "".join(
        f"  - {{name: {name}, path: p, device_kv_floor_bytes: {floor}}}\n"
        for name, floor in (("a", "40MiB"), ("b", "0"))
    )
    text += "  - {name: c, path: p}\n" + TIERS
    engine = load_config(write(tmp_path, text)).engine_settings()
    assert engine.device.kv_bytes == 40 << 20
    assert [model.device_kv_floor_bytes for model in engine.models] == [40 << 20, 0, None]
