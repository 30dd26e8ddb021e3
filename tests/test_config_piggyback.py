"""What the section `piggyback` means on machines of several sizes, and what they refuse."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cpu_attn.host import descriptor
from omniserve.config import Config, load_config
from omniserve.config_piggyback import PiggybackOff, describe_piggybacking
from omniserve.errors import ConfigError
from omniserve.machine import Machine
from omniserve.settings import DeviceKind, PiggybackSettings

GIB = 1 << 30
EIGHT_CORES = Machine(8, 32 * GIB, 24 * GIB)
BATCH = {"name": "batch", "class": "best_effort"}
CHAT = {"name": "chat", "class": "latency_sensitive", "ttft_ms": 1, "tpot_ms": 1}


def write(
    directory: Path,
    *piggyback: dict[str, Any],
    kind: DeviceKind,
    tier: object,
    step_times: str = "auto",
    host_kv_bytes: str | None = None,
) -> Path:
    """A file with one model for each section, named a, b, and so on."""
    models = [
        {
            "name": string.ascii_letters[index],
            "path": "/p",
            "step_times": step_times,
            "piggyback": section,
        }
        for index, section in enumerate(piggyback)
    ]
    path = directory / "omniserve.yaml"
    content = {"device": {"kind": kind}, "models": models, "tiers": [tier]}
    if host_kv_bytes is not None:
        content["host"] = {"kv_bytes": host_kv_bytes}
    # JSON is YAML too.
    path.write_text(json.dumps(content))
    return path


def load(
    directory: Path,
    *piggyback: dict[str, Any],
    kind: DeviceKind = "cpu",
    tier: object = BATCH,
    machine: Machine = EIGHT_CORES,
    step_times: str = "auto",
    host_kv_bytes: str | None = None,
) -> Config:
    path = write(
        directory,
        *piggyback,
        kind=kind,
        tier=tier,
        step_times=step_times,
        host_kv_bytes=host_kv_bytes,
    )
    return load_config(path, machine)


def settings_of(config: Config, machine: Machine) -> list[PiggybackSettings | None]:
    return [model.piggyback for model in config.engine_settings(machine).models]


def refusal(directory: Path, *piggyback: dict[str, Any], **options: Any) -> str:
    """The only problem found, without the name of the file and the line."""
    with pytest.raises(ConfigError) as caught:
        load(directory, *piggyback, **options)
    (line,) = str(caught.value).splitlines()
    return line.split(": ", 1)[1]


@pytest.mark.parametrize(
    ("kind", "num_cores", "num_threads"),
    [
        ("cpu", 2, 1),
        ("cpu", 8, 2),
        ("auto", 8, 2),
        ("cpu", 200, 16),
        ("cuda", 1, 1),
        ("cuda", 8, 4),
        ("npu", 8, 4),
        ("npu", 64, 16),
    ],
)
def test_unset_threads_follow_the_cores(
    tmp_path: Path, kind: DeviceKind, num_cores: int, num_threads: int
) -> None:
    machine = Machine(num_cores, GIB, GIB)
    config = load(tmp_path, {}, kind=kind, machine=machine)
    (settings,) = settings_of(config, machine)
    assert settings is not None and settings.host_attention_threads == num_threads


@pytest.mark.parametrize("section", [{}, {"enabled": True}])
def test_models_beyond_what_host_attention_takes_are_refused(
    tmp_path: Path, section: dict[str, Any]
) -> None:
    """Those that do not piggyback are not counted."""
    sections = [{"enabled": False}, *[section] * descriptor.MAX_MODELS]
    config = load(tmp_path, *sections)
    assert settings_of(config, EIGHT_CORES).count(None) == 1
    assert refusal(tmp_path, *sections, section) == (
        "models[33].piggyback = a mapping: must have enabled: false, as 32 models before it "
        "piggyback and no more can"
    )


def test_more_models_may_be_there_where_nothing_is_offloaded(tmp_path: Path) -> None:
    config = load(tmp_path, *[{}] * (descriptor.MAX_MODELS + 1), tier=CHAT)
    assert not any(settings_of(config, EIGHT_CORES))


def test_unset_pools_share_a_quarter_of_what_is_available(tmp_path: Path) -> None:
    config = load(tmp_path, {}, {"host_kv_bytes": "4GiB"}, {}, {"enabled": False})
    sizes = [each and each.host_kv_bytes for each in settings_of(config, EIGHT_CORES)]
    assert sizes == [(24 - 4) * GIB // 4 // 2, 4 * GIB, (24 - 4) * GIB // 4 // 2, None]


@pytest.mark.parametrize(
    ("available_bytes", "pool_bytes"), [(1000 * GIB, 8 * GIB), (10 << 20, 2 << 20), (0, 1 << 20)]
)
def test_unset_pools_are_whole_mib_within_bounds(
    tmp_path: Path, available_bytes: int, pool_bytes: int
) -> None:
    machine = Machine(2, 1000 * GIB, available_bytes)
    (settings,) = settings_of(load(tmp_path, {}, machine=machine), machine)
    assert settings is not None and settings.host_kv_bytes == pool_bytes


@pytest.mark.parametrize(
    ("kind", "step_times", "most"),
    [("cpu", "none", 8), ("auto", "none", 8), ("cuda", "none", 64), ("cpu", "auto", 64)],
)
def test_rows_beside_latency_sensitive_ones(
    tmp_path: Path, kind: DeviceKind, step_times: str, most: int
) -> None:
    """Few on a CPU device where nothing tells their time, never more than all."""
    sections: tuple[dict[str, Any], ...] = (
        {"max_lane_rows": 5}, {}, {"max_lane_rows_beside_ls": 0}
    )  # fmt: skip
    config = load(tmp_path, *sections, kind=kind, step_times=step_times)
    rows = [each and each.max_lane_rows_beside_ls for each in settings_of(config, EIGHT_CORES)]
    assert rows == [5, most, 0]


@pytest.mark.parametrize(
    ("section", "kind", "tier", "num_cores", "reason"),
    [
        ({"enabled": False}, "cpu", BATCH, 8, "enabled is false"),
        ({}, "cpu", CHAT, 8, "no tier is best_effort"),
        ({}, "cpu", BATCH, 1, "a CPU device needs the one core"),
        ({"host_attention_threads": 1}, "auto", BATCH, 1, "a CPU device needs the one core"),
        ({}, "cuda", BATCH, 1, None),
        ({"enabled": True}, "cpu", CHAT, 8, None),
    ],
)
def test_when_it_is_off(
    tmp_path: Path, section: dict[str, Any], kind: DeviceKind, tier: object, num_cores: int,
    reason: str | None,
) -> None:  # fmt: skip
    machine = Machine(num_cores, GIB, GIB)
    config = load(tmp_path, section, kind=kind, tier=tier, machine=machine)
    found = config.piggybacking(machine)["a"]
    (settings,) = settings_of(config, machine)
    if reason is None:
        assert found == settings and settings is not None
    else:
        assert found == PiggybackOff(reason) and settings is None


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (
            {"host_attention_threads": 8},
            "models[0].piggyback.host_attention_threads = 8: must be at most 7: "
            "this process may use 8 cores, and a CPU device needs one",
        ),
        (
            {"host_attention_threads": 0},
            "models[0].piggyback.host_attention_threads = 0: must be greater than or equal to 1",
        ),
        (
            {"host_kv_bytes": "33GiB"},
            "models[0].piggyback.host_kv_bytes = '33GiB': must keep all models' host KV, "
            "33.0 GiB together, within the 32.0 GiB of memory of this machine",
        ),
        (
            {"host_kv_bytes": "1GB"},
            "models[0].piggyback.host_kv_bytes = '1GB': must be a positive whole number of bytes "
            "or a number with KiB, MiB or GiB",
        ),
        (
            {"max_lane_rows": 8, "max_lane_rows_beside_ls": 9},
            "models[0].piggyback.max_lane_rows_beside_ls = 9: must be at most max_lane_rows, 8",
        ),
        ({"when": "never"}, "models[0].piggyback.when = 'never': must be 'auto' or 'always'"),
        ({"enabled": "yes"}, "models[0].piggyback.enabled = 'yes': must be true or false"),
        (
            {"thread": 1},
            "unknown key 'thread' in models[0].piggyback; allowed keys: enabled, host_kv_bytes, "
            "host_kv_floor_bytes, "
            "host_attention_threads, max_offloaded_requests, max_lane_rows, "
            "max_lane_rows_beside_ls, max_resident_decodes, max_device_kv_share, "
            "binding_points, when",
        ),
    ],
)
def test_nonsense_is_refused_by_key_value_and_what_is_allowed(
    tmp_path: Path, section: dict[str, Any], problem: str
) -> None:
    assert refusal(tmp_path, section) == problem


def test_host_memory_for_all_models_counts_instead_of_their_pools(tmp_path: Path) -> None:
    most: dict[str, Any] = {"host_kv_bytes": "30GiB"}
    sections: tuple[dict[str, Any], ...] = (most | {"host_kv_floor_bytes": 0}, most, {})
    config = load(tmp_path, *sections, host_kv_bytes="16GiB")
    assert config.engine_settings(EIGHT_CORES).host_kv_bytes == 16 * GIB
    settings = settings_of(config, EIGHT_CORES)
    assert [each and each.host_kv_bytes for each in settings] == [30 * GIB, 30 * GIB, 16 * GIB]
    assert [each and each.host_kv_floor_bytes for each in settings] == [0, None, None]


@pytest.mark.parametrize(
    ("budget", "sections", "problem"),
    [
        (
            "33GiB",
            [{}],
            "host.kv_bytes = '33GiB': must be within the 32.0 GiB of memory of this machine",
        ),
        (
            None,
            [{"host_kv_floor_bytes": "1MiB"}],
            "models[0].piggyback.host_kv_floor_bytes = '1MiB': is a part of host.kv_bytes, which "
            "is not set",
        ),
        (
            "8MiB",
            [{"host_kv_floor_bytes": "3MiB", "host_kv_bytes": "2MiB"}],
            "models[0].piggyback.host_kv_floor_bytes = '3MiB': must be at most host_kv_bytes of "
            "the model, 2MiB",
        ),
        (
            "8MiB",
            [
                {"host_kv_floor_bytes": "8MiB", "enabled": False},
                {"host_kv_floor_bytes": "5MiB"},
                {"host_kv_floor_bytes": "4MiB"},
            ],
            "models[2].piggyback.host_kv_floor_bytes = '4MiB': must leave all host_kv_floor_bytes "
            "together (9MiB up to here) within host.kv_bytes, 8MiB",
        ),
    ],
)
def test_a_host_budget_that_cannot_be_kept_is_refused(
    tmp_path: Path, budget: str | None, sections: list[dict[str, Any]], problem: str
) -> None:
    assert refusal(tmp_path, *sections, host_kv_bytes=budget) == problem


def test_the_pools_of_all_models_count_together(tmp_path: Path) -> None:
    half = {"host_kv_bytes": "16GiB"}
    load(tmp_path, half, half, {})
    load(tmp_path, half, half, half | {"enabled": False})
    problem = refusal(tmp_path, half, {}, half, {"host_kv_bytes": 1})
    assert problem == (
        "models[3].piggyback.host_kv_bytes = 1: must keep all models' host KV, "
        "32.0 GiB together, within the 32.0 GiB of memory of this machine"
    )


def test_an_accelerator_leaves_every_core_to_the_host(tmp_path: Path) -> None:
    load(tmp_path, {"host_attention_threads": 8}, kind="cuda")
    problem = refusal(tmp_path, {"host_attention_threads": 9}, kind="cuda")
    assert problem == (
        "models[0].piggyback.host_attention_threads = 9: must be at most 8: "
        "this process may use 8 cores"
    )


def test_asked_for_where_there_is_no_core_for_it(tmp_path: Path) -> None:
    problem = refusal(tmp_path, {"enabled": True}, kind="auto", machine=Machine(1, GIB, GIB))
    assert problem == (
        "models[0].piggyback.enabled = true: must be false: "
        "this process may use 1 core, and a CPU device needs one"
    )


def test_what_people_read_of_it(tmp_path: Path) -> None:
    one = {"host_kv_bytes": "16MiB", "host_attention_threads": 1}
    config = load(tmp_path, {"host_kv_bytes": "1.5GiB"}, {"enabled": False}, one)
    assert describe_piggybacking(config.piggybacking(EIGHT_CORES), None) == (
        "a on (2 host threads, 1.5 GiB of host KV), b off (enabled is false), "
        "c on (1 host thread, 16.0 MiB of host KV)"
    )
    assert "c on (1 host thread, at most 16.0 MiB of host KV)" in describe_piggybacking(
        config.piggybacking(EIGHT_CORES), GIB
    )


@given(
    sizes=st.lists(st.none() | st.integers(1, 16 << 20), min_size=1, max_size=4),
    num_cores=st.integers(1, 300),
    available_mib=st.integers(16, 1 << 20),
    kind=st.sampled_from(["auto", "cpu", "cuda", "npu"]),
)
def test_unset_values_always_fit_the_machine(
    sizes: list[int | None], num_cores: int, available_mib: int, kind: DeviceKind
) -> None:
    memory_bytes = available_mib << 20
    machine = Machine(num_cores, memory_bytes + 1, memory_bytes)
    models = [
        {"name": f"m{index}", "path": "/p", "piggyback": {"host_kv_bytes": size}}
        for index, size in enumerate(sizes)
    ]
    content = {"device": {"kind": kind}, "models": models, "tiers": [BATCH]}
    taken = sum(size or 0 for size in sizes)
    is_on = num_cores > 1 or kind in ("cuda", "npu")
    if is_on and taken > machine.memory_bytes:
        with pytest.raises(ValidationError, match="must keep all models' host KV"):
            Config.model_validate(content, context={"machine": machine})
        return
    config = Config.model_validate(content, context={"machine": machine})
    found = [each for each in settings_of(config, machine) if each is not None]
    assert len(found) == (len(sizes) if is_on else 0)
    for each in found:
        assert 1 <= each.host_attention_threads <= max(num_cores - 1, 1)
    # A pool has at least 1 MiB, even where others have taken everything.
    total = sum(each.host_kv_bytes for each in found)
    assert total <= max(memory_bytes, taken + (sizes.count(None) << 20))
