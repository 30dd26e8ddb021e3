"""KV memory that the device cannot give is a mistake in the configuration, told by its key."""

from pathlib import Path

import pytest
from engine_builders import make_engine, make_model_settings

from omniserve.errors import ConfigError


def test_a_pool_beyond_the_address_space_names_its_key(tiny_checkpoint: Path) -> None:
    settings = make_model_settings(tiny_checkpoint, device_kv_bytes=1 << 50)
    with pytest.raises(ConfigError, match=r"^models\.tiny\.device_kv_bytes: the cpu device cannot"):
        make_engine(settings)
