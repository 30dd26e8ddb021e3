"""What a file may say of tenants, and where it lets the daemon listen."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tenant_builders import hash_of_token, token_of

from omniserve.config import Config, load_config
from omniserve.config_tenant import MAX_TENANTS
from omniserve.errors import ConfigError

ACME = {"name": "acme", "token_sha256": hash_of_token("acme")}
OTHER = {"name": "other", "token_sha256": hash_of_token("other")}
BASE: dict[str, Any] = {
    "device": {"kind": "cuda"},
    "models": [{"name": "demo", "path": "/models/demo"}],
    "tiers": [
        {"name": "chat", "class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 100},
        {"name": "batch", "class": "best_effort"},
    ],
}


def load(directory: Path, **sections: Any) -> Config:
    path = directory / "omniserve.yaml"
    path.write_text(yaml.safe_dump(BASE | sections))
    return load_config(path)


def problem(directory: Path, **sections: Any) -> str:
    """The one line that is said about a file."""
    with pytest.raises(ConfigError) as refused:
        load(directory, **sections)
    (line,) = str(refused.value).splitlines()
    return line.partition("omniserve.yaml:")[2].partition(": ")[2]


@pytest.mark.parametrize(
    ("tenants", "words"),
    [
        ([ACME, OTHER | {"name": "acme"}], "tenants[1].name = 'acme': is the name of another"),
        (
            [ACME, OTHER | {"token_sha256": [hash_of_token("x"), ACME["token_sha256"]]}],
            "tenants[1].token_sha256: is a token of acme already",
        ),
        (
            [ACME | {"tiers": ["gold"]}],
            "tenants[0].tiers[0] = 'gold': must name a tier of the file",
        ),
        ([ACME | {"models": ["x"]}], "tenants[0].models[0] = 'x': must name a model of the file"),
        ([ACME | {"tiers": []}], "tenants[0].tiers = a list: must hold at least one entry"),
        ([{"name": "acme"}], "tenants[0]: the required key 'token_sha256' is missing"),
        (
            [ACME | {"token_sha256": int("1" * 64)}],
            "tenants[0].token_sha256: must be in quotes: what has no letters is a number in YAML",
        ),
        (
            [ACME | {"token_sha256": [ACME["token_sha256"], int("1" * 64)]}],
            "tenants[0].token_sha256[1]: must be in quotes",
        ),
        ([ACME | {"quotas": {}}], "unknown key 'quotas' in tenants[0]; did you mean 'quota'?"),
        ([ACME | {"quota": {"concurrent": 0}}], "tenants[0].quota.concurrent = 0: must be greater"),
        ([ACME | {"quota": {"queued": 0}}], "tenants[0].quota.queued = 0: must be greater"),
        ([ACME | {"quota": {"best_effort_share": 0}}], "best_effort_share = 0: must be greater"),
        ([ACME | {"name": "a b"}], "tenants[0].name = 'a b': must be 1 to 128 letters"),
        ([ACME | {"name": token_of("acme")}], "tenants[0].name = 'omni_…': must not look like"),
        ([ACME | {"tiers": [token_of("a")]}], "tenants[0].tiers[0] = 'omni_…': must not look like"),
    ],
)
def test_contradictions_are_told_by_their_place(
    tmp_path: Path, tenants: list[dict[str, Any]], words: str
) -> None:
    assert words in problem(tmp_path, tenants=tenants)


@pytest.mark.parametrize("key", ["models", "tiers"])
def test_nothing_is_called_by_a_token(tmp_path: Path, key: str) -> None:
    named = [BASE[key][0] | {"name": f"a-{token_of('acme')}"}]
    said = problem(tmp_path, **{key: named})
    assert "must not look like a token" in said
    assert token_of("acme")[5:] not in said


def test_no_more_tenants_than_metrics_can_bear(tmp_path: Path) -> None:
    tenants = [
        {"name": f"t{number}", "token_sha256": hash_of_token("t", number)}
        for number in range(MAX_TENANTS)
    ]
    assert len(load(tmp_path, tenants=tenants).tenants) == MAX_TENANTS
    assert "at most 1024 entries" in problem(tmp_path, tenants=[*tenants, ACME])


@pytest.mark.parametrize("key", ["grpc", "http"])
def test_without_tenants_nobody_from_elsewhere_can_connect(tmp_path: Path, key: str) -> None:
    listen = {key: "0.0.0.0:9"}
    assert f"listen.{key} = '0.0.0.0:9': must be an address of this machine alone" in problem(
        tmp_path, listen=listen
    )
    assert getattr(load(tmp_path, listen=listen, tenants=[ACME]).listen, key) == "0.0.0.0:9"


def test_a_shown_file_means_the_same(tmp_path: Path) -> None:
    quota = {"concurrent": 3, "best_effort_share": 0.5}
    config = load(tmp_path, tenants=[ACME | {"quota": quota, "tiers": ["batch"]}, OTHER])
    shown = config.model_dump(mode="json", exclude_none=True)
    assert Config.model_validate(shown) == config
