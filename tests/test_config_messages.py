"""What is said of configuration files that are wrong."""

import os
from pathlib import Path

import pytest
import yaml
from config_files import MINIMAL, MODELS, TIERS, problems, write
from hypothesis import given
from hypothesis import strategies as st

from omniserve.config import load_config
from omniserve.errors import ConfigError

LATENCY_SENSITIVE = "{name: a, class: latency_sensitive, ttft_ms: 1, tpot_ms: 1}"


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
        (MINIMAL + "device: {kv_bytes: 0}", "5: device.kv_bytes = 0: must be a positive whole"),
        (
            "models:\n  - {name: a, path: p, device_kv_floor_bytes: 1MiB}\n" + TIERS,
            "2: models[0].device_kv_floor_bytes = '1MiB': is a part of device.kv_bytes, which is "
            "not set",
        ),
        (
            "device: {kv_bytes: 1GiB}\nmodels:\n"
            "  - {name: a, path: p, device_kv_floor_bytes: 65MiB}\n" + TIERS,
            "3: models[0].device_kv_floor_bytes = '65MiB': must be at most device_kv_bytes of the "
            "model, 64MiB",
        ),
        (
            "device: {kv_bytes: 40MiB}\nmodels:\n"
            "  - {name: a, path: p, device_kv_floor_bytes: 20MiB}\n"
            "  - {name: b, path: p, device_kv_floor_bytes: 21MiB}\n" + TIERS,
            "4: models[1].device_kv_floor_bytes = '21MiB': must leave all device_kv_floor_bytes "
            "together (41MiB up to here) within device.kv_bytes, 40MiB",
        ),
        (MINIMAL + "wat: 1", "5: unknown key 'wat'; allowed keys: listen, device, host, models"),
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
    few = ", piggyback: {enabled: false}"
    models = [
        f"{{name: m{number}, path: p, device_kv_bytes: 1MiB{few if number < 32 else ''}}}"
        for number in range(65)
    ]
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
    del models[0]
    assert problems(tmp_path, text(64, 1)) == [
        "omniserve.yaml:2: models[63].piggyback: must have enabled: false, as 32 models before it "
        "piggyback and no more can"
    ]


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


@pytest.mark.parametrize("value", ["!!seq x", "!!map x", "!!int [1]", "{? !!str {a: 1} : 2}"])
def test_a_tag_that_does_not_fit_its_value_is_refused(tmp_path: Path, value: str) -> None:
    (problem,) = problems(tmp_path, MODELS + TIERS + f"daemon: {value}\n")
    assert problem.startswith("omniserve.yaml:3: ")


def test_long_names_are_cut(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, MODELS + TIERS + f"? {'x' * 30_000}\n: 1\n")
    assert problem.startswith("omniserve.yaml:3: unknown key 'xxxx")
    assert len(problem) < 2000
