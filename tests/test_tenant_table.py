"""Whose token is whose."""

import hmac

import pytest
from tenant_builders import make_tenant, token_of

from omniserve.access import tenant_table
from omniserve.access.access_control import AccessControl
from omniserve.access.caller import ANYONE, Caller
from omniserve.access.tenant_table import TenantTable, shares_of
from omniserve.errors import PermissionDenied, Unauthenticated

ACME = make_tenant("acme", num_tokens=2)
LIMITED = make_tenant("limited", tiers=["batch", "voice"], models=["demo"])


def test_each_token_is_its_tenants() -> None:
    table = TenantTable((ACME, LIMITED))
    assert table.caller(token_of("acme")) == table.caller(token_of("acme", 1))
    assert table.caller(token_of("acme")) == Caller("acme", is_known=True)
    assert table.caller(token_of("limited")) == Caller(
        "limited",
        is_known=True,
        tiers=frozenset({"batch", "voice"}),
        models=frozenset({"demo"}),
        default_tier="batch",
    )


@pytest.mark.parametrize(
    "token", ["", "omni_", token_of("acme", 2), token_of("acme")[:-1], "ü", "x" * 9999]
)
def test_other_tokens_are_nobodys(token: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        TenantTable((ACME, LIMITED)).caller(token)
    assert str(refused.value) == "the token is not known"


@pytest.mark.parametrize("token", [token_of("acme"), token_of("limited"), token_of("nobody")])
def test_every_hash_is_looked_at_whichever_it_is(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return hmac.compare_digest(known, given)

    monkeypatch.setattr(tenant_table, "compare_digest", compare)
    access = AccessControl((ACME, LIMITED))
    if token == token_of("nobody"):
        with pytest.raises(Unauthenticated):
            access.caller([f"Bearer {token}"])
    else:
        assert access.caller([f"Bearer {token}"]).is_known
    assert len(set(compared)) == len(compared) == 3


def test_without_tenants_everyone_may_call_whatever_key_they_send() -> None:
    access = AccessControl(())
    assert access.is_open
    for values in ([], ["Bearer sk-something"], ["nonsense", "twice"]):
        assert access.caller(values) is ANYONE


def test_tenants_replace_each_other() -> None:
    access = AccessControl((ACME,))
    assert not access.is_open
    access.set_tenants((LIMITED,))
    assert access.caller([f"Bearer {token_of('limited')}"]).tenant == "limited"
    with pytest.raises(Unauthenticated):
        access.caller([f"Bearer {token_of('acme')}"])


def test_shares_of_all_tenants() -> None:
    double = make_tenant("double", quota={"best_effort_share": 2})
    assert shares_of((ACME, double)) == {"acme": 1.0, "double": 2.0}


def test_a_known_caller_is_itself_and_nobody_else() -> None:
    caller = Caller("acme", is_known=True)
    assert caller.claiming("") is caller
    assert caller.claiming("acme") is caller
    with pytest.raises(PermissionDenied, match="'other' is not the tenant of the token"):
        caller.claiming("other")
    assert ANYONE.claiming("") is ANYONE
    assert ANYONE.claiming("other") == Caller("other")
