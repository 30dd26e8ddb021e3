"""What contenders and their servers are told: frames, memory, routes, configurations."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from colocate_builders import LIMITS, NUM_BE, make_scene

from omniserve.bench.colocate.contenders import (
    LS_ALONE,
    PEER,
    PEER_BE,
    PEER_HOST,
    VLLM_FCFS,
    VLLM_OVERFLOW,
    VLLM_PRIORITY,
    VLLM_SPLIT,
    contenders,
    rotated,
    server_plans,
)
from omniserve.bench.colocate.frames import EMULATED, WHOLE, frame
from omniserve.bench.colocate.omniserve_server import daemon_config
from omniserve.bench.colocate.scene import Scene, Shape
from omniserve.bench.colocate.vllm_server import vllm_arguments, vllm_environment
from omniserve.config import load_config
from omniserve.errors import ConfigError
from omniserve.machine import Machine


def test_an_emulated_accelerator_shares_no_core_with_the_host() -> None:
    two, five = frame(EMULATED, (0, 1)), frame(EMULATED, (1, 3, 5, 7, 9))
    assert (two.device_cores, two.host_cores, two.host_threads) == ((0,), (1,), 1)
    assert set(five.device_cores) | set(five.host_cores) == {1, 3, 5, 7, 9}
    assert not set(five.device_cores) & set(five.host_cores)


def test_the_whole_machine_is_everybodys() -> None:
    whole = frame(WHOLE, (0, 1, 2, 3))
    assert whole.device_cores == whole.host_cores == (0, 1, 2, 3)
    assert 1 <= whole.host_threads < 4


def test_one_core_is_too_few() -> None:
    with pytest.raises(ConfigError, match="2 or more"):
        frame(EMULATED, (0,))


@pytest.mark.parametrize("shape", ["one", "two"])
@pytest.mark.parametrize("be_in_kv", [0, 1, 8])
def test_every_system_has_the_same_device_memory(shape: Shape, be_in_kv: int) -> None:
    scene = make_scene(shape=shape, be_in_kv=be_in_kv)
    plans = {plan.key: plan for plan in server_plans(scene, NUM_BE, with_vllm=True)}
    device = [plans[key] for key in ("omniserve", "omniserve-piggyback")]
    ours = [{model.name: model.device_kv_bytes for model in plan.models} for plan in device]
    peers = [plans[key] for key in (PEER, PEER_BE) if key in plans]
    theirs = {model.name: model.device_kv_bytes for plan in peers for model in plan.models}
    assert ours == [theirs, theirs]
    assert all(num_bytes % (32 * 1024) == 0 for num_bytes in theirs.values())


def test_memory_grows_by_whole_requests() -> None:
    sizes = [make_scene(be_in_kv=number).device_kv_bytes for number in (0, 1, 3)]
    # 500 and 160 tokens in blocks of 32, 1 KiB each.
    assert sizes == [512 * 1024, (512 + 160) * 1024, (512 + 3 * 160) * 1024]


@pytest.mark.parametrize("be_in_kv", [0, 3, 7, 8])
def test_contenders_have_the_same_backlog(be_in_kv: int) -> None:
    scene = make_scene(be_in_kv=be_in_kv)
    servers = {plan.key for plan in server_plans(scene, NUM_BE, with_vllm=True)}
    for contender in contenders(scene, NUM_BE, with_vllm=True):
        sent = sum(route.num_requests for route in contender.be_routes)
        assert sent == (0 if contender.key == LS_ALONE else NUM_BE)
        assert set(contender.servers) <= servers


def test_overflow_goes_to_the_host_only_where_memory_is_short() -> None:
    def overflow(be_in_kv: int) -> dict[str, int] | None:
        scene = make_scene(be_in_kv=be_in_kv)
        for contender in contenders(scene, NUM_BE, with_vllm=True):
            if contender.key == VLLM_OVERFLOW:
                return {route.server: route.num_requests for route in contender.be_routes}
        return None

    assert overflow(0) == {PEER_HOST: NUM_BE}
    assert overflow(3) == {PEER: 3, PEER_HOST: NUM_BE - 3}
    assert overflow(NUM_BE) is None


def test_priorities_tell_vllm_contenders_apart() -> None:
    one = {each.key: each for each in contenders(make_scene(), NUM_BE, with_vllm=True)}
    assert (one[VLLM_PRIORITY].be_priority, one[VLLM_FCFS].be_priority) == (1, 0)
    two = [each.key for each in contenders(make_scene(shape="two"), NUM_BE, with_vllm=True)]
    assert VLLM_SPLIT in two
    assert VLLM_FCFS not in two


def test_without_vllm_there_is_none() -> None:
    assert {plan.system for plan in server_plans(make_scene(), NUM_BE, with_vllm=False)} == {
        "omniserve"
    }
    assert len(contenders(make_scene(), NUM_BE, with_vllm=False)) == 3


def test_rounds_begin_with_different_contenders() -> None:
    everyone = contenders(make_scene(), NUM_BE, with_vllm=True)
    orders = [rotated(everyone, index) for index in range(len(everyone))]
    keys = {each.key for each in everyone}
    assert {order[0].key for order in orders} == keys
    assert all(len(order) == len(keys) for order in orders)
    assert all({each.key for each in order} == keys for order in orders)


@pytest.mark.parametrize("with_vllm", [False, True])
def test_nobody_follows_the_same_in_every_round(with_vllm: bool) -> None:
    everyone = contenders(make_scene(), NUM_BE, with_vllm)
    before: dict[str, set[str]] = {each.key: set() for each in everyone}
    for index in range(4):
        for earlier, later in pairwise(rotated(everyone, index)):
            before[later.key].add(earlier.key)
    assert all(len(those) > 1 for those in before.values())


@pytest.mark.parametrize("scene", [make_scene(), make_scene("whole", "two", 8)])
def test_the_daemon_accepts_its_configuration(scene: Scene, tmp_path: Path) -> None:
    machine = Machine(num_cores=2, memory_bytes=32 << 30, available_bytes=16 << 30)
    for plan in server_plans(scene, NUM_BE, with_vllm=False):
        path = tmp_path / f"{plan.key}.json"
        path.write_text(json.dumps(daemon_config(plan, LIMITS)))
        config = load_config(path, machine)
        settings = config.engine_settings(machine)
        assert [model.device_kv_bytes for model in settings.models] == [
            model.device_kv_bytes for model in plan.models
        ]
        assert [model.piggyback is not None for model in settings.models] == [
            plan.piggybacking
        ] * len(plan.models)


def test_vllm_computes_where_the_frame_says() -> None:
    plans = {plan.key: plan for plan in server_plans(make_scene(), NUM_BE, with_vllm=True)}
    bound = {
        key: vllm_environment(plans[key], Path("/v/bin/python"), Path("/cache"))[
            "VLLM_CPU_OMP_THREADS_BIND"
        ]
        for key in (PEER, PEER_HOST)
    }
    assert bound == {PEER: "0", PEER_HOST: "1"}


def test_vllm_has_our_limits() -> None:
    (plan,) = (each for each in server_plans(make_scene(), NUM_BE, True) if each.key == PEER)
    words = vllm_arguments(plan, LIMITS, "127.0.0.1:1234")
    said = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word[:2] == "--"}
    told = daemon_config(replace(plan, system="omniserve"), LIMITS)["models"][0]
    for name, own in {
        "--max-num-batched-tokens": "max_step_tokens",
        "--max-num-seqs": "max_running_requests",
        "--max-model-len": "max_model_len",
        "--kv-cache-memory-bytes": "device_kv_bytes",
        "--block-size": "block_size",
        "--dtype": "dtype",
        "--model": "path",
    }.items():
        assert said[name] == str(told[own])
    assert (said["--scheduling-policy"], said["--port"]) == ("priority", "1234")
    assert "--no-enable-prefix-caching" in words
    assert told["prefix_caching"] is False


@pytest.mark.parametrize("shape", ["one", "two"])
def test_every_pool_holds_the_longest_request(shape: Shape) -> None:
    scene = make_scene(shape=shape, be_in_kv=0)
    # And a block more, which vLLM does not use.
    longest = (scene.memory.longest_tokens + 32) * scene.memory.kv_bytes_per_token
    assert all(model.device_kv_bytes >= longest for model in scene.models())
