"""The host attention process, seen by whoever reads its messages."""

import pytest
from host_attention_builders import make_model, make_settings
from host_pool_builders import make_pool

from cpu_attn.host.attention import HostAttention


def test_one_that_is_stopped_while_it_starts_ends_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pool = make_pool(num_blocks=4)
    host = HostAttention([make_model(pool, max_context_len=16)], make_settings())
    host.begin_start()

    # What it says of itself when it is ready finds nobody who listens.
    host.close()
    pool.close()

    assert capfd.readouterr().err == ""
