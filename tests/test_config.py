"""What configuration files may say, and what is said of those that say something else."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from omniserve.config import Config, load_config
from omniserve.config_values import (
    format_size,
    is_loopback,
    join_address,
    parse_size,
    split_address,
)
from omniserve.errors import ConfigError
from omniserve.machine import Machine
from omniserve.settings import ModelSettings, PiggybackSettings

DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"

MINIMAL = """\
models:
  - {name: demo, path: models/demo}
tiers:
  - {name: batch, class: best_effort}
"""
TIERS = "tiers: [{name: batch, class: best_effort}]\n"
MODELS = "models: [{name: demo, path: models/demo}]\n"
LATENCY_SENSITIVE = "{name: a, class: latency_sensitive, ttft_ms: 1, tpot_ms: 1}"


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "omniserve.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(directory: Path, text: str | bytes) -> list[str]:
    """The lines of the error, without the file's directory."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(directory, text))
    return str(caught.value).replace(f"{directory}/", "").splitlines()


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
    }
    assert "Checkpoint directory in Hugging Face layout" in text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (MINIMAL + "device: {kind: tpu}", "5: device.kind = 'tpu': must be 'auto', 'cpu'"),
        (MINIMAL + "device: {threads: 0}", "5: device.threads = 0: must be greater than or"),
        (MINIMAL + "device: {threads: true}", "5: device.threads = true: must be a whole number"),
        (MINIMAL + "device: {threads: '2'}", "5: device.threads = '2': must be a whole number"),
        (MINIMAL + "device: cpu", "5: device = 'cpu': must be a mapping; allowed keys: kind"),
        (MINIMAL + "listen: null", "5: listen = null: must be a mapping; allowed keys: grpc"),
        (MINIMAL + "listen: {http: 8000}", "5: listen.http = 8000: must be a text"),
        (MINIMAL + "listen: {http: ':8000'}", "5: listen.http = ':8000': must be host:port"),
        (MINIMAL + "listen: {http: 'a:65536'}", "5: listen.http = 'a:65536': must be host:port"),
        (
            MINIMAL + "listen: {http: '[::1]:1', grpc: '[::1]:1'}",
            "5: listen.http = '[::1]:1': must differ from listen.grpc",
        ),
        *(
            # None of it would arrive where it is meant to; what it says may be secret.
            (MINIMAL + f"tracing: {{endpoint: '{url}'}}", "5: tracing.endpoint: must be http:// or")
            for url in (
                "http://collector:4317?key=1",
                "http://collector/v1/traces?key=1",
                "http://collector/v1/traces#part",
                "http://collector#part",
                "http://user:word@collector",
                "ftp://collector",
                "http://",
            )
        ),
        (MINIMAL + "daemon: {shutdown_grace_s: -1}", "5: daemon.shutdown_grace_s = -1: must be"),
        (MINIMAL + "daemon: {shutdown_grace_s: .nan}", "5: daemon.shutdown_grace_s = nan: must"),
        (MINIMAL + "wat: 1", "5: unknown key 'wat'; allowed keys: listen, device, models"),
        (
            MINIMAL + "device: {thread: 2}",
            "5: unknown key 'thread' in device; did you mean 'threads'? allowed keys: kind,",
        ),
        (MODELS, "1: the required key 'tiers' is missing"),
        (TIERS, "1: the required key 'models' is missing"),
        ("models: []\n" + TIERS, "1: models = a list: must hold at least one entry"),
        ("models: {}\n" + TIERS, "1: models = a mapping: must be a list"),
        (
            "models:\n  - path: a\n" + TIERS,
            "2: models[0]: the required key 'name' is missing",
        ),
        (
            "models:\n  - name: a\n    path: b\n    device_kv_bytes: 64MB\n" + TIERS,
            "4: models[0].device_kv_bytes = '64MB': must be a positive whole number of bytes",
        ),
        (
            "models:\n  - {name: a, path: b}\n  - {name: a, path: c}\n" + TIERS,
            "3: models[1].name = 'a': is the name of models[0] already",
        ),
        (
            "models:\n  - {name: a, path: b, default_tier: fast}\n" + TIERS,
            "2: models[0].default_tier = 'fast': must name a tier: batch",
        ),
        (
            "models: [{name: 'a b', path: b}]\n" + TIERS,
            "1: models[0].name = 'a b': must be 1 to 128 letters",
        ),
        (
            'models: [{name: a, path: "a\\0b"}]\n' + TIERS,
            "1: models[0].path = 'a\\x00b': must be the path of a directory",
        ),
        (
            MODELS + "tiers: [{name: flex, class: best_effort}]",
            "2: tiers[0].name = 'flex': must not be one of auto, default, priority, flex",
        ),
        (
            MODELS + "tiers: [{name: a, class: best_effort}, {name: a, class: best_effort}]",
            "2: tiers[1].name = 'a': is the name of tiers[0] already",
        ),
        (
            MODELS + "tiers: [{name: a, class: fast}]",
            "2: tiers[0].class = 'fast': must be 'latency_sensitive' or 'best_effort'",
        ),
        (
            MODELS + "tiers: [{name: a, service_class: best_effort}]",
            "2: tiers[0]: the required key 'class' is missing",
        ),
        (
            MODELS + "tiers: [{name: a, class: best_effort, ttft_ms: 5}]",
            "2: tiers[0].ttft_ms = 5: is not allowed for a best_effort tier",
        ),
        (
            MODELS + "tiers: [{name: a, class: best_effort, percentile: 90}]",
            "2: tiers[0].percentile = 90: is not allowed for a best_effort tier",
        ),
        (
            MODELS + "tiers: [{name: a, class: latency_sensitive, ttft_ms: 5}]",
            "2: tiers[0].tpot_ms: is required for a latency_sensitive tier",
        ),
        (
            MODELS + "tiers: [{name: a, class: latency_sensitive, ttft_ms: 0, tpot_ms: 1}]",
            "2: tiers[0].ttft_ms = 0: must be greater than 0",
        ),
        (
            MODELS + f"tiers: [{LATENCY_SENSITIVE[:-1]}, percentile: 100}}]",
            "2: tiers[0].percentile = 100: must be less than 100",
        ),
        (
            MODELS + f"tiers: [{LATENCY_SENSITIVE[:-1]}, percentile: 49}}]",
            "2: tiers[0].percentile = 49: must be greater than or equal to 50",
        ),
        (MINIMAL + "models: []", "5: the key 'models' is given twice (first on line 1)"),
        (
            "models: [{name: a,\n  path: b, name: c}]\n" + TIERS,
            "2: the key 'name' is given twice (first on line 1)",
        ),
        ("", "1: the file is empty"),
        ("# nothing\n", "1: the file is empty"),
        ("- 1", "1: the file: must be a mapping; allowed keys: listen"),
        ("hello", "1: the file: must be a mapping"),
        (MINIMAL + "---\na: 1", "5: expected a single document in the stream"),
        (MINIMAL + "device: {kind: [cpu", "5: while parsing a flow sequence, expected ',' or ']'"),
        (MINIMAL + "\tdevice: 1", "5: "),
        ("a: &x [1]\nb: *x", "2: aliases (*name) are not allowed"),
        ("a: &x [*x]", "1: aliases (*name) are not allowed"),
        ("\n" + "[" * 100, "2: nested more than 16 levels deep"),
        ("a: {b: " * 50_000, " the file is larger than 256 KiB"),
        ("1: 2", "1: the key '1' is not a plain name"),
        ("on: 2", "1: the key 'on' is not a plain name"),
        ("? [a]\n: 2", "1: the key is not a plain name"),
        ("a: !!python/object/apply:os.getcwd []", "1: the tag 'tag:yaml.org,2002:python/"),
        ("!!omap [a: 1]", "1: the tag 'tag:yaml.org,2002:omap' is not allowed"),
        ("!!set {a, b}", "1: the tag 'tag:yaml.org,2002:set' is not allowed"),
        ("a: !!python/name:os.system ''", "1: the tag 'tag:yaml.org,2002:python/"),
        ("a: " + "1" * 5000, "1: '1111111111111111111111111111111111111111' is not a valid value"),
        (b"models:\n - \xff\xfe", "2: not UTF-8 text"),
        (MINIMAL.encode("utf-16"), "1: not UTF-8 text"),
        ("a: \x00", " not a YAML file"),
    ],
)
def test_a_wrong_file_is_named_with_line_key_value_and_what_is_allowed(
    tmp_path: Path, text: str | bytes, problem: str
) -> None:
    found = problems(tmp_path, text)
    assert any(line.startswith(f"omniserve.yaml:{problem}") for line in found), found


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "device: {kind: x}\nmodels:\n - {name: 1, path: 2}\ntiers: 5\n"
    found = problems(tmp_path, text)
    assert [line.split(" = ")[0] for line in found] == [
        "omniserve.yaml:1: device.kind",
        "omniserve.yaml:3: models[0].name",
        "omniserve.yaml:3: models[0].path",
        "omniserve.yaml:4: tiers",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing.yaml: No such file"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load_config(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * ((256 << 10) + 1))
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        load_config(large)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ConfigError, match=f"cannot read {path}: Not a regular file"):
            load_config(path)


def test_numbers_of_models_and_tiers_are_limited(tmp_path: Path) -> None:
    models = [f"{{name: m{number}, path: p, device_kv_bytes: 1MiB}}" for number in range(65)]
    tiers = [f"{{name: t{number}, class: best_effort}}" for number in range(257)]
    off = "device: {kind: cuda}\n"

    def text(num_models: int, num_tiers: int) -> str:
        lists = ", ".join(models[:num_models]), ", ".join(tiers[:num_tiers])
        return off + "models: [{}]\ntiers: [{}]\n".format(*lists)

    config = load_config(write(tmp_path, text(64, 256)))
    assert (len(config.models), len(config.tiers)) == (64, 256)
    assert problems(tmp_path, text(65, 257)) == [
        "omniserve.yaml:2: models = a list: must hold at most 64 entries",
        "omniserve.yaml:3: tiers = a list: must hold at most 256 entries",
    ]


def test_a_byte_order_mark_and_dates_are_plain_text(tmp_path: Path) -> None:
    text = MINIMAL.replace("name: demo", "name: 2026-11-20")
    config = load_config(write(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert config.models[0].name == "2026-11-20"


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    with pytest.raises(ValidationError, match="frozen"):
        config.models[0].name = "other"


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


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_no_content_brings_more_than_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    raw = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError):
        load_config(path)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "path", "class", "ttft_ms", "kind", "grpc", "x"]), children
        )
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["listen", "device", "models", "tiers", "daemon", "x"]), _json, max_size=4
    )
)
def test_any_structure_is_accepted_or_refused_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "structure.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    try:
        load_config(path)
    except ConfigError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"{path}:")


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


@pytest.mark.parametrize("value", ["!!seq x", "!!map x", "!!int [1]", "{? !!str {a: 1} : 2}"])
def test_a_tag_that_does_not_fit_its_value_is_refused(tmp_path: Path, value: str) -> None:
    (problem,) = problems(tmp_path, MODELS + TIERS + f"daemon: {value}\n")
    assert problem.startswith("omniserve.yaml:3: ")


def test_long_names_are_cut(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, MODELS + TIERS + f"? {'x' * 30_000}\n: 1\n")
    assert problem.startswith("omniserve.yaml:3: unknown key 'xxxx")
    assert len(problem) < 2000


def test_what_config_show_prints_of_the_admin_address_is_allowed(tmp_path: Path) -> None:
    text = "listen: {admin: auto}\n" + MODELS + TIERS
    assert load_config(write(tmp_path, text)).listen.admin == "auto"
