"""Tokens: how they are made, read from headers, and kept out of sight."""

import re

import pytest

from omniserve.access.bearer_token import bearer_token, hash_of, new_token, without_tokens
from omniserve.errors import Unauthenticated

SECRET = "omni_" + "s3cr-t_" * 6 + "x"


def test_tokens_have_256_random_bits_and_a_prefix() -> None:
    # So many that each of 64 characters is missing at no place, but once in 10^17 times.
    tokens = {new_token() for _ in range(3000)}
    assert len(tokens) == 3000
    # 43 characters of 6 bits.
    assert all(re.fullmatch(r"omni_[A-Za-z0-9_-]{43}", token) for token in tokens)
    for place in range(5, 47):
        assert len({token[place] for token in tokens}) == 64


def test_the_hash_is_sha256_as_others_compute_it() -> None:
    # The example of FIPS 180-4.
    assert hash_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "value", [f"Bearer {SECRET}", f"bearer {SECRET}", f"  BEARER   {SECRET}  "]
)
def test_the_scheme_is_read_in_any_capitals(value: str) -> None:
    assert bearer_token([value]) == SECRET


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "a token is needed"),
        ([""], "must be given once, as Bearer TOKEN"),
        (["Bearer"], "must be given once"),
        (["Bearer "], "must be given once"),
        ([SECRET], "must be given once"),
        ([f"Basic {SECRET}"], "must be given once"),
        ([f"Bearer {SECRET} {SECRET}"], "must be given once"),
        ([f"Bearer {SECRET}", f"Bearer {SECRET}"], "must be given once"),
    ],
)
def test_whatever_is_not_one_token_is_refused_without_repeating_it(
    values: list[str], words: str
) -> None:
    with pytest.raises(Unauthenticated, match=words) as refused:
        bearer_token(values)
    assert SECRET not in str(refused.value)


def test_tokens_in_a_text_are_hidden_also_where_they_were_cut() -> None:
    hidden = without_tokens(f"token_sha256 = '{SECRET}' or {SECRET[:30]}…; omni_directional stays")
    assert hidden == "token_sha256 = 'omni_…' or omni_……; omni_directional stays"
