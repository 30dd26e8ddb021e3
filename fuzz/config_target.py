"""Configuration files, from their bytes to the settings that come of them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from fuzz.byte_source import ByteSource
from fuzz.defects import PLANTED_TOKEN, check, check_message
from fuzz.json_mutation import keys_of, mutated, spliced
from omniserve.config import Config, load_config
from omniserve.errors import ConfigError
from omniserve.machine import Machine

MACHINE = Machine(num_cores=4, memory_bytes=16 << 30, available_bytes=8 << 30)
KEYS = keys_of(Config.model_json_schema(mode="validation"))
HASH = "0123456789abcdef" * 4
TIERS: list[dict[str, Any]] = [
    {"name": "chat", "class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 100},
    {"name": "batch", "class": "best_effort"},
]
MODELS: list[dict[str, Any]] = [{"name": "demo", "path": "models/demo"}]
BASES: tuple[dict[str, Any], ...] = (
    {"models": MODELS, "tiers": TIERS},
    {
        "listen": {"grpc": "0.0.0.0:0", "http": "127.0.0.1:8000", "admin": "unix:/run/x/a.sock"},
        "models": MODELS,
        "tiers": TIERS,
        "tenants": [
            {"name": "one", "token_sha256": HASH, "quota": {"concurrent": 4, "queued": 2}},
            {"name": "two", "token_sha256": [HASH[::-1]], "tiers": ["batch"], "models": ["demo"]},
        ],
        "tls": {"certificate": "cert.pem", "key": "credential:key", "client_ca": "ca.pem"},
        "limits": {"max_message_bytes": "1MiB", "max_prompt_tokens": 100, "handshake_s": 1.5},
        "tracing": {"endpoint": "http://127.0.0.1:4317", "sample_share": 0.5},
    },
    # What people do by mistake: the token itself instead of its hash.
    {
        "models": MODELS,
        "tiers": TIERS,
        "tenants": [{"name": "one", "token_sha256": PLANTED_TOKEN}],
    },
    {
        "device": {"kind": "cpu", "threads": 3},
        "models": [
            {
                **MODELS[0],
                "dtype": "float32",
                "device_kv_bytes": "1.5GiB",
                "max_model_len": 512,
                "default_tier": "batch",
                "step_times": "none",
                "piggyback": {"enabled": True, "host_kv_bytes": "64MiB"},
            },
            {
                "name": "b",
                "path": "~nobody-here/b",
                "max_step_tokens": 64,
                "piggyback": {"enabled": False},
            },
        ],
        "tiers": [*TIERS, {**TIERS[0], "name": "c", "fallback": "batch", "max_waiting": 3}],
        "daemon": {"shutdown_grace_s": 3, "engine_heartbeat_s": 2, "engine_load_s": 60},
    },
)
PIECES = (
    *(
        "&a ",
        "*a",
        "? ",
        "!!str ",
        "!!seq ",
        "!!map ",
        "!!int ",
        "!!float ",
        "!!null ",
        "!x ",
        "<<: ",
    ),
    *("!!timestamp ", "2001-01-01", "=", "%YAML 9.9\n", "---\n", "...\n", "- ", ": ", "\t", "\n"),
    *("|\n  ", ">\n  ", "{", "}", "[", "]", ",", "'", '"', "#", "\x00", "\x85", "\u2028", "\ufeff"),
    *("\\ud83d", "\\x1b", ".inf", ".nan", "0x" + "f" * 300, "9" * 5000, "1:30", "[" * 40, "~", "@"),
    PLANTED_TOKEN,
)

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""Reading is what is tried; writing had better be fast."""


class ConfigTarget:
    """One file for all cases."""

    name = "config"

    def __init__(self, checkpoint: Path) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="omniserve-fuzz-")
        self._path = Path(self._directory.name) / "c.yaml"

    def run(self, data: bytes) -> None:
        """Raises Defect, or whatever the system under test lets out."""
        source = ByteSource(data)
        self._path.write_bytes(_file(source))
        try:
            config = load_config(self._path, MACHINE)
            config.engine_settings(MACHINE)
        except ConfigError as error:
            self._check_refusal(str(error))
            return
        self._check_round_trip(config)

    def close(self) -> None:
        self._directory.cleanup()

    def _check_refusal(self, message: str) -> None:
        for line in message.split("\n"):
            # Without its beginning nobody can know that it is one.
            check_message(line, [PLANTED_TOKEN])

    def _check_round_trip(self, config: Config) -> None:
        """What is shown of a configuration means the same."""
        shown = config.model_dump(mode="json", exclude_none=True)
        self._path.write_text(_as_yaml(shown))
        check(load_config(self._path, MACHINE) == config, f"shown it means another: {shown}")


def _file(source: ByteSource) -> bytes:
    if source.below(32) == 0:
        return source.rest()
    data = mutated(source.choice(BASES), KEYS, source)
    text = _as_json(data, source.flag()) if source.flag() else _as_yaml(data)
    if source.flag():
        text = spliced(text, PIECES, source)
    return text.encode()


def _as_json(data: Any, is_ascii: bool) -> str:
    """JSON is YAML, but for what is not a number."""
    text = json.dumps(data, ensure_ascii=is_ascii)
    for name, spelled in (("NaN", ".nan"), ("Infinity", ".inf")):
        text = text.replace(name, spelled)
    return text


def _as_yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_DUMPER, allow_unicode=True, sort_keys=False)
