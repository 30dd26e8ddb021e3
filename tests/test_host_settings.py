"""Settings of host attention that are refused."""

from collections.abc import Iterator
from typing import Any

import pytest
from host_attention_builders import make_model, make_settings
from host_pool_builders import make_pool

from cpu_attn.element import Element
from cpu_attn.host.pool import HostKvPool
from cpu_attn.kernel_task import NO_WINDOW
from cpu_attn.kernel_variant import Products


@pytest.fixture(scope="module")
def pool() -> Iterator[HostKvPool]:
    pool = make_pool()
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "num_heads 3: 1 to 16 times the 2 KV heads"),
        ({"num_heads": 34}, "num_heads 34"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"io": Element.INT8}, "io Element.INT8: one of"),
        ({"max_q_len": 0}, "max_q_len 0: 1..8"),
        ({"max_q_len": 9}, "max_q_len 9: 1..8"),
        ({"max_context_len": 0}, "max_context_len 0"),
        ({"max_context_len": 1 << 31}, "max_context_len 2147483648"),
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": 0.0}, "scale 0.0: a positive"),
        ({"scale": -1.0}, "scale -1.0: a positive"),
        ({"windows": (None,)}, "windows: 1 layers, the pool has 2"),
        ({"windows": (None, 0)}, "windows: 0"),
        ({"sink_tokens": -1}, "sink_tokens -1"),
        ({"sink_tokens": 1 << 63}, "sink_tokens 9223372036854775808"),
        ({"sinks": ((0.0,) * 4,)}, "sinks: 1 layers"),
        ({"sinks": ((0.0,) * 4, (0.0,) * 3)}, "sinks: 3 heads, the model has 4"),
        ({"sinks": ((0.0,) * 4, (0.0, 1.0, float("nan"), 0.0))}, "sinks: finite logits"),
        ({"sinks": ((0.0,) * 4, (0.0, 1.0, float("inf"), 0.0))}, "sinks: finite logits"),
        ({"products": Products.BFLOAT16}, "products BFLOAT16"),
    ],
)
def test_models_that_cannot_be_served(
    pool: HostKvPool, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(pool, **fields)


@pytest.mark.parametrize("scale", ["x", None, 1j])
def test_a_scale_that_is_no_number(pool: HostKvPool, scale: object) -> None:
    with pytest.raises(TypeError, match="scale .*: a number is needed"):
        make_model(pool, scale=scale)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cores": ()}, "cores"),
        ({"cores": (0, 0)}, "cores"),
        ({"cores": (100_000,)}, "cores"),
        ({"cores": (-1,)}, "cores"),
        ({"num_slots": 0}, "num_slots 0"),
        ({"stall_timeout_s": -1.0}, "stall_timeout_s"),
        ({"spin_s": float("nan")}, "spin_s"),
        ({"max_restarts": -1}, "max_restarts -1"),
        ({"max_attempts": 0}, "max_attempts 0"),
    ],
)
def test_settings_that_cannot_be_met(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_settings(**fields)


def test_block_tables_and_windows_follow_from_the_model(pool: HostKvPool) -> None:
    model = make_model(pool, max_context_len=17, windows=(None, 5))
    assert model.max_blocks == 2
    assert [model.window(layer) for layer in range(2)] == [NO_WINDOW, 5]
    assert make_model(pool).window(1) == NO_WINDOW
