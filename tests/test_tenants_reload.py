"""Tenants of a changed file: what a reload takes over, what it says, and what goes on."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_servers import make_reloader
from service_builders import ScriptedEngine, complete, make_config, make_generation_request
from tenant_builders import hash_of_token, make_tenanted_service, token_of

from omniserve.access.caller import Caller
from omniserve.config import load_config
from omniserve.errors import ConfigError, QuotaExceeded, Unauthenticated
from omniserve.generation import GenerationRequest
from omniserve.reload.change_text import change_text
from omniserve.reload.reloader import Reload
from omniserve.service import GenerationService

ACME = {"name": "acme", "token_sha256": hash_of_token("acme")}
OTHER = {"name": "other", "token_sha256": [hash_of_token("other")], "tiers": ["batch"]}


class Site:
    """A service and the file that it was started with. Its clock stands still: no quota flows
    back."""

    def __init__(self, directory: Path, checkpoint: Path, *tenants: dict[str, Any]) -> None:
        self.path = directory / "omniserve.yaml"
        self._data = make_config(checkpoint).model_dump(mode="json", exclude_none=True)
        self.write(*tenants)
        self.engine = ScriptedEngine()
        started = load_config(self.path)
        self.service: GenerationService = make_tenanted_service(
            checkpoint, *started.tenants, engine=self.engine, clock=lambda: 100.0
        )
        self._reloader = make_reloader(self.service, self.path)

    def write(self, *tenants: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump(self._data | {"tenants": list(tenants)}))

    async def reload(self, *tenants: dict[str, Any]) -> Reload:
        self.write(*tenants)
        return await self._reloader.reload()

    def caller(self, tenant: str, number: int = 0) -> Caller:
        return self.service.access.caller([f"Bearer {token_of(tenant, number)}"])


def texts(reload: Reload) -> list[str]:
    return [change_text(each.tier, each.key, each.before, each.after) for each in reload.changes]


@pytest.mark.asyncio
async def test_a_token_is_replaced_by_way_of_both(tmp_path: Path, tiny_checkpoint: Path) -> None:
    site = Site(tmp_path, tiny_checkpoint, ACME)
    both = [hash_of_token("acme"), hash_of_token("acme", 1)]
    taken = await site.reload(ACME | {"token_sha256": both})
    assert texts(taken) == ["tenants.acme.token_sha256: 1 -> 2, 1 of them new"]
    assert site.caller("acme") == site.caller("acme", 1)
    taken = await site.reload(ACME | {"token_sha256": both[1:]})
    assert texts(taken) == ["tenants.acme.token_sha256: 2 -> 1, 0 of them new"]
    assert site.caller("acme", 1).tenant == "acme"
    with pytest.raises(Unauthenticated):
        site.caller("acme")


@pytest.mark.asyncio
async def test_everything_that_changed_is_told(tmp_path: Path, tiny_checkpoint: Path) -> None:
    site = Site(tmp_path, tiny_checkpoint, ACME, OTHER)
    quota = {"concurrent": 3, "best_effort_share": 2}
    changed = ACME | {"quota": quota, "tiers": ["batch", "voice"]}
    third = {"name": "third", "token_sha256": hash_of_token("third"), "models": ["demo"]}
    taken = await site.reload(changed, third)
    assert texts(taken) == [
        "tenants.acme.quota.best_effort_share: 1 -> 2",
        "tenants.acme.tiers: - -> batch, voice",
        "tenants.acme.quota.concurrent: - -> 3",
        "tenants.other: {tiers: [batch], quota.best_effort_share: 1.0} -> -",
        "tenants.third: - -> {models: [demo], quota.best_effort_share: 1.0}",
    ]
    assert taken.needs_restart == ()
    assert site.engine.shares == {"acme": 2.0, "third": 1.0}
    assert site.caller("acme").tiers == frozenset({"batch", "voice"})
    assert texts(await site.reload(changed, third)) == []


@pytest.mark.asyncio
async def test_running_requests_keep_what_they_have(tmp_path: Path, tiny_checkpoint: Path) -> None:
    site = Site(tmp_path, tiny_checkpoint, ACME, OTHER)
    wanted = make_generation_request()
    async with await site.service.start(by(site.caller("acme"))) as stream:
        await site.reload(ACME | {"quota": {"concurrent": 1, "output_tokens_per_minute": 100}})
        with pytest.raises(QuotaExceeded):
            await site.service.start(by(site.caller("acme")))
        result = await stream.result()
    assert result.usage.num_output_tokens == wanted.sampling.max_tokens == 5
    (status,) = site.service.access.quotas.tenants_status()
    assert status.num_concurrent == 0
    assert status.output_tokens_share is not None
    assert 0 < status.output_tokens_share <= 0.05
    await complete(site.service, by(site.caller("acme")))


@pytest.mark.asyncio
async def test_a_request_whose_tenant_went_while_it_was_read_is_refused(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    site = Site(tmp_path, tiny_checkpoint, ACME, OTHER)
    caller = site.caller("acme")
    await site.reload(OTHER)
    with pytest.raises(Unauthenticated, match="not known any more"):
        await site.service.start(by(caller))


@pytest.mark.asyncio
@pytest.mark.parametrize(("before", "after"), [((ACME,), ()), ((), (ACME,))])
async def test_whether_there_are_tenants_is_settled_at_the_start(
    tmp_path: Path,
    tiny_checkpoint: Path,
    before: tuple[dict[str, Any], ...],
    after: tuple[dict[str, Any], ...],
) -> None:
    site = Site(tmp_path, tiny_checkpoint, *before)
    taken = await site.reload(*after)
    assert taken.is_accepted
    assert (texts(taken), taken.needs_restart) == ([], ("tenants",))
    assert site.service.access.is_open == (not before)
    if before:
        with pytest.raises(Unauthenticated):
            site.service.access.caller([])


@pytest.mark.asyncio
async def test_a_wrong_tenant_changes_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    site = Site(tmp_path, tiny_checkpoint, ACME)
    refused = await site.reload(OTHER, ACME | {"tiers": ["gold"]})
    assert (
        "tenants[1].tiers[0] = 'gold': must name a tier of the file: interactive" in refused.error
    )
    assert site.caller("acme").tenant == "acme"
    assert site.engine.shares == {}


@pytest.mark.parametrize(
    "tenants",
    [
        [{"name": "acme", "token_sha256": token_of("acme")}],
        [{"name": "acme", "token_sha256": [hash_of_token("acme"), token_of("acme")]}],
        [{"name": "acme", "token_sha256": {"token": token_of("acme")}}],
        [{"name": token_of("acme"), "token_sha256": 7}],
        [{"name": "acme", "token": token_of("acme")}],
        [token_of("acme")],
        token_of("acme"),
        {token_of("acme"): 1},
    ],
)
@pytest.mark.asyncio
async def test_a_token_in_the_wrong_place_is_not_repeated(
    tmp_path: Path, tiny_checkpoint: Path, tenants: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = Site(tmp_path, tiny_checkpoint, ACME)
    data = yaml.safe_load(site.path.read_text()) | {"tenants": tenants}
    site.path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as caught:
        load_config(site.path)
    refused = await site._reloader.reload()
    assert refused.error == str(caught.value)
    told = refused.error + "".join(str(vars(record)) for record in caplog.records)
    assert "tenants" in told
    assert token_of("acme")[5:25] not in told


def test_broken_yaml_does_not_repeat_a_token(tmp_path: Path) -> None:
    path = tmp_path / "omniserve.yaml"
    for text in (
        f"tenants: {token_of('acme')}: [\n",
        f"{token_of('acme')}: 1\n{token_of('acme')}: 2\n",
        f"tenants: !{token_of('acme')} x\n",
        f"tenants: !!float {token_of('acme')}\n",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert token_of("acme")[5:25] not in str(caught.value)


def test_one_hash_or_several_and_nothing_else(tmp_path: Path, tiny_checkpoint: Path) -> None:
    one = Site(tmp_path, tiny_checkpoint, ACME)
    several = Site(tmp_path, tiny_checkpoint, ACME | {"token_sha256": [ACME["token_sha256"]]})
    assert one.service.access.tenants == several.service.access.tenants
    for wrong, words in (
        ([], "token_sha256: must hold at least one entry"),
        ([hash_of_token("acme", number) for number in range(17)], "must hold at most 16 entries"),
        (hash_of_token("acme").upper(), "must be 64 hexadecimal digits"),
        (7, "must be in quotes"),
        (None, "token_sha256: must be a list"),
    ):
        one.write(ACME | {"token_sha256": wrong})
        with pytest.raises(ConfigError, match="tenants") as caught:
            load_config(one.path)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def by(caller: Caller) -> GenerationRequest:
    return replace(make_generation_request(), caller=caller)
