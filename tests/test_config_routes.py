"""Aliases of models, and the models that tiers and tenants have as a default."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tenant_builders import hash_of_token

from omniserve.config import Config, load_config
from omniserve.errors import ConfigError

CHAT = {"name": "chat", "class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 100}
ACME = {"name": "acme", "token_sha256": hash_of_token("acme")}


def model(name: str, *aliases: str) -> dict[str, Any]:
    return {"name": name, "path": f"/models/{name}", "aliases": list(aliases)}


def load(directory: Path, **sections: Any) -> Config:
    base = {"device": {"kind": "cuda"}, "models": [model("a", "x", "y"), model("b")]}
    path = directory / "omniserve.yaml"
    path.write_text(yaml.safe_dump(base | {"tiers": [CHAT]} | sections))
    return load_config(path)


def test_a_file_may_name_models_by_aliases_and_defaults_by_either(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        tiers=[CHAT | {"default_model": "y"}],
        tenants=[ACME | {"models": ["a"], "default_model": "x"}],
    )
    assert config.models[0].aliases == ("x", "y")
    assert (config.tiers[0].default_model, config.tenants[0].default_model) == ("y", "x")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"models": [model("a", "b"), model("b")]},
            "models[0].aliases[0] = 'b': is a name of model b already",
        ),
        (
            {"models": [model("a", "x"), model("b", "x")]},
            "models[1].aliases[0] = 'x': is a name of model a already",
        ),
        (
            {"models": [model("a", "a")]},
            "models[0].aliases[0] = 'a': is a name of model a already",
        ),
        (
            {"tiers": [CHAT | {"default_model": "c"}]},
            "tiers[0].default_model = 'c': must name a model of the file: a, b, x, y",
        ),
        (
            {"tenants": [ACME | {"default_model": "c"}]},
            "tenants[0].default_model = 'c': must name a model of the file",
        ),
        (
            {"tenants": [ACME | {"models": ["b"], "default_model": "x"}]},
            "tenants[0].default_model = 'x': must be one of the tenant's: b",
        ),
    ],
)
def test_names_that_contradict_each_other_are_refused(
    sections: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, **sections)
    assert words in str(refused.value)
