"""Places for calls: never more than there are, and half of them for one tenant at most."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.access.call_places import RETRY_AFTER_S, CallPlaces
from omniserve.errors import Overloaded

MOVES = st.lists(st.tuples(st.booleans(), st.sampled_from(("", "acme", "other"))), max_size=60)


@given(MOVES, st.integers(min_value=1, max_value=9))
def test_nobody_has_more_than_he_may_and_none_is_lost(
    moves: list[tuple[bool, str]], most: int
) -> None:
    places, held = CallPlaces(most), Counter[str]()
    for is_taking, tenant in moves:
        if not is_taking:
            if held[tenant]:
                places.free(tenant)
                held[tenant] -= 1
            continue
        is_full = held.total() == most
        has_its_half = tenant != "" and held[tenant] >= max(1, most // 2)
        if is_full or has_its_half:
            with pytest.raises(Overloaded):
                places.take(tenant)
        else:
            places.take(tenant)
            held[tenant] += 1


def test_the_messages_say_whose_places_are_taken() -> None:
    places = CallPlaces(4)
    places.take("acme")
    places.take("acme")
    with pytest.raises(Overloaded) as refused:
        places.take("acme")
    assert str(refused.value) == (
        "2 requests of tenant 'acme' are being answered; no more are taken"
    )
    assert refused.value.retry_after_s == RETRY_AFTER_S
    places.take("other")
    places.take("")
    with pytest.raises(Overloaded) as refused:
        places.take("another")
    assert str(refused.value) == "4 requests are being answered; no more are taken"
