"""What tenants have of their quotas, whatever their requests do."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenant_builders import make_tenant

from omniserve.access.quotas import Charge, QuotaLedger, TenantStatus
from omniserve.errors import InvalidRequest, QuotaExceeded, Unauthenticated, retry_after_s_of

PER_MINUTE = 240
"""One token in a quarter of a second."""


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_ledger(clock: Callable[[], float] | None = None, /, **quota: float) -> QuotaLedger:
    return QuotaLedger((make_tenant("acme", quota=quota), make_tenant("other")), clock or Clock())


def status_of(ledger: QuotaLedger) -> TenantStatus:
    return ledger.tenants_status()[0]


def refusal(ledger: QuotaLedger, num_sequences: int = 1) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refused:
        ledger.enter("acme", num_sequences)
    return refused.value


def test_places_are_taken_and_come_free() -> None:
    ledger = make_ledger(concurrent=3)
    first = ledger.enter("acme", 2)
    ledger.enter("acme", 1)
    refused = refusal(ledger)
    assert refused.quota == "concurrent"
    assert "'acme' has 3 of 3 requests here at the same time; try again in" in str(refused)
    first.close(had_nothing=False)
    second = ledger.enter("acme", 2)
    assert status_of(ledger) == TenantStatus("acme", 3, 3, None, None, 1)
    second.close(had_nothing=False)
    assert status_of(ledger).num_concurrent == 1


def test_who_has_a_token_is_not_queued_any_more() -> None:
    ledger = make_ledger(queued=2)
    charge = ledger.enter("acme", 2)
    assert refusal(ledger).quota == "queued"
    charge.on_first_token()
    other = ledger.enter("acme", 1)
    assert (status_of(ledger).num_concurrent, status_of(ledger).num_queued) == (3, 2)
    charge.close(had_nothing=False)
    assert (status_of(ledger).num_concurrent, status_of(ledger).num_queued) == (1, 1)
    other.close(had_nothing=False)


def test_who_will_have_no_token_is_not_queued_any_more() -> None:
    ledger = make_ledger(queued=3)
    charge = ledger.enter("acme", 3)
    charge.stop_waiting(1)
    assert (status_of(ledger).num_concurrent, status_of(ledger).num_queued) == (3, 2)
    charge.on_failure()
    assert (status_of(ledger).num_concurrent, status_of(ledger).num_queued) == (3, 0)
    # What comes late frees nobody else's places.
    ledger.enter("acme", 1)
    charge.on_first_token()
    charge.close(had_nothing=False)
    charge.on_failure()
    assert (status_of(ledger).num_concurrent, status_of(ledger).num_queued) == (1, 1)


@pytest.mark.parametrize("quota", ["concurrent", "queued"])
def test_more_at_once_than_there_will_ever_be_is_no_question_of_time(quota: str) -> None:
    ledger = make_ledger(**{quota: 3})
    with pytest.raises(InvalidRequest, match="n: 4 sequences in one request are more") as refused:
        ledger.enter("acme", 4)
    assert (refused.value.param, retry_after_s_of(refused.value)) == ("n", None)
    assert status_of(ledger).num_concurrent == 0


def test_prompts_are_taken_while_there_is_room_for_all_of_them() -> None:
    clock = Clock()
    ledger = make_ledger(clock, input_tokens_per_minute=60)
    ledger.enter("acme", 1).take_input(45)
    charge = ledger.enter("acme", 1)
    with pytest.raises(QuotaExceeded, match="too few of its 60 input tokens a minute left") as no:
        charge.take_input(20)
    assert no.value.quota == "input_tokens"
    assert no.value.retry_after_s == pytest.approx(5.0)
    charge.close(had_nothing=True)
    clock.now_s += no.value.retry_after_s
    ledger.enter("acme", 1).take_input(20)
    # Nothing is left: the next one is refused before its prompt is looked at.
    assert refusal(ledger).quota == "input_tokens"


def test_a_prompt_longer_than_a_minutes_worth_is_no_question_of_time() -> None:
    charge = make_ledger(input_tokens_per_minute=60).enter("acme", 1)
    with pytest.raises(InvalidRequest, match="prompt: 61 tokens are more than tenant 'acme'"):
        charge.take_input(61)
    charge.close(had_nothing=True)


def test_text_that_no_request_goes_on_with_is_charged() -> None:
    clock = Clock()
    ledger = make_ledger(clock, input_tokens_per_minute=60)
    for num_tokens, had_nothing, share in ((20, True, 0.0), (20, False, 1 / 3), (10**6, False, 1)):
        charge = ledger.enter("acme", 1)
        charge.on_tokenised(num_tokens)
        charge.close(had_nothing=had_nothing)
        assert status_of(ledger).input_tokens_share == pytest.approx(share)
    # A minute's worth at most: 20 tokens below nothing, and one has to be there.
    assert refusal(ledger).retry_after_s == pytest.approx(21.0)
    assert next(ledger.accounts).num_input_tokens == 80


def test_text_of_a_prompt_is_charged_once() -> None:
    ledger = make_ledger(input_tokens_per_minute=60)
    charge = ledger.enter("acme", 1)
    charge.on_tokenised(30)
    charge.take_input(30)
    charge.close(had_nothing=False)
    assert status_of(ledger).input_tokens_share == 0.5


def test_text_for_its_own_sake_is_charged_and_refused() -> None:
    clock = Clock()
    ledger = make_ledger(clock, input_tokens_per_minute=60)
    ledger.check_input("acme")
    ledger.take_tokenised("acme", 60)
    with pytest.raises(QuotaExceeded, match="used up all of its 60 input tokens") as refused:
        ledger.check_input("acme")
    clock.now_s += refused.value.retry_after_s
    ledger.check_input("acme")
    with pytest.raises(Unauthenticated):
        ledger.check_input("stranger")
    # The tenant may be gone by the time the text is tokenised.
    ledger.take_tokenised("stranger", 60)


def test_output_is_charged_as_it_comes_and_may_leave_a_debt() -> None:
    clock = Clock()
    ledger = make_ledger(clock, output_tokens_per_minute=60)
    charge = ledger.enter("acme", 1)
    charge.on_output(59)
    ledger.enter("acme", 1)
    charge.on_output(31)
    refused = refusal(ledger)
    assert refused.quota == "output_tokens"
    # 30 below nothing, and one has to be there.
    assert refused.retry_after_s == pytest.approx(31.0)
    assert status_of(ledger).output_tokens_share == 1.0
    clock.now_s += 31
    ledger.enter("acme", 1)


def test_what_came_to_nothing_costs_no_prompt_tokens() -> None:
    ledger = make_ledger(input_tokens_per_minute=60)
    for had_nothing, share in ((True, 0.0), (False, 0.5)):
        charge = ledger.enter("acme", 1)
        charge.take_input(30)
        charge.close(had_nothing=had_nothing)
        assert status_of(ledger).input_tokens_share == share


def test_a_counter_of_tokens_takes_nothing_back() -> None:
    ledger = make_ledger(input_tokens_per_minute=100)
    account = next(ledger.accounts)
    counted = []
    for had_nothing, has_token in ((True, False), (False, True), (False, False)):
        charge = ledger.enter("acme", 2)
        charge.take_input(30)
        counted.append(account.num_input_tokens)
        if has_token:
            charge.on_first_token()
            charge.on_first_token()
            counted.append(account.num_input_tokens)
        charge.close(had_nothing=had_nothing)
        counted.append(account.num_input_tokens)
    assert counted == [0, 0, 0, 30, 30, 30, 60]


def test_tenants_do_not_share_quotas() -> None:
    ledger = make_ledger(concurrent=1, output_tokens_per_minute=1)
    ledger.enter("acme", 1).on_output(1000)
    for _ in range(50):
        ledger.enter("other", 128).on_output(10**9)


def test_a_tenant_that_is_gone_is_unknown_and_its_requests_go_on() -> None:
    ledger = make_ledger(concurrent=2)
    charge = ledger.enter("acme", 2)
    ledger.set_tenants((make_tenant("other"),))
    with pytest.raises(Unauthenticated):
        ledger.enter("acme", 1)
    assert [status.tenant for status in ledger.tenants_status()] == ["other"]
    # Back again before they ended, it has no places that it would not have had.
    ledger.set_tenants((make_tenant("acme", quota={"concurrent": 2}),))
    charge.on_output(5)
    assert refusal(ledger).quota == "concurrent"
    charge.close(had_nothing=False)
    ledger.enter("acme", 2)


def test_accounts_of_tenants_that_are_gone_are_forgotten() -> None:
    ledger = make_ledger()
    for number in range(100):
        ledger.set_tenants((make_tenant(f"t{number}"),))
        ledger.enter(f"t{number}", 1).close(had_nothing=False)
    ledger.set_tenants((make_tenant("last"),))
    assert list(ledger._accounts) == ["last"]


def test_new_quotas_hold_for_who_comes_and_forget_nothing() -> None:
    ledger = make_ledger(concurrent=8, input_tokens_per_minute=60)
    charges = [ledger.enter("acme", 1) for _ in range(4)]
    charges[0].take_input(50)
    quota = {"concurrent": 2, "queued": 9, "input_tokens_per_minute": 100}
    ledger.set_tenants((make_tenant("acme", quota=quota),))
    assert status_of(ledger).num_concurrent == 4
    assert status_of(ledger).input_tokens_share == 0.5
    assert refusal(ledger).quota == "concurrent"
    for charge in charges[:3]:
        charge.close(had_nothing=False)
    ledger.enter("acme", 1)


def test_the_charge_tells_what_its_tenant_has() -> None:
    ledger = make_ledger(concurrent=8, input_tokens_per_minute=60)
    charge = ledger.enter("acme", 2)
    charge.take_input(15)
    assert charge.describe() == (
        "tenant 'acme' now has 2 of 8 concurrent, 2 queued, 25% of 60 input tokens a minute"
    )


@dataclass
class Book:
    """The same quotas kept in whole numbers, quarter by quarter of a second."""

    concurrent: int
    queued: int
    input: int
    output: int
    open: list[list[int]] = field(default_factory=list)
    """For each request: sequences, those without a token, input tokens."""

    def pass_quarters(self, num: int) -> None:
        self.input = min(PER_MINUTE, self.input + num)
        self.output = min(PER_MINUTE, self.output + num)

    def may_enter(self, num: int) -> bool:
        num_here = sum(sequences for sequences, _, _ in self.open)
        num_queued = sum(waiting for _, waiting, _ in self.open)
        has_places = num_here + num <= self.concurrent and num_queued + num <= self.queued
        return has_places and self.input >= 1 and self.output >= 1


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 300)),
        st.tuples(st.just("enter"), st.integers(1, 3)),
        st.tuples(st.just("prompt"), st.integers(1, PER_MINUTE)),
        st.tuples(st.just("first token"), st.just(1)),
        st.tuples(st.just("output"), st.integers(1, 200)),
        st.tuples(st.sampled_from(["end", "come to nothing"]), st.just(0)),
    ),
    max_size=60,
)


@given(ACTIONS, st.integers(3, 6), st.integers(3, 6))
@settings(max_examples=300)
def test_the_ledger_agrees_with_plain_books(
    actions: list[tuple[str, int]], concurrent: int, queued: int
) -> None:
    clock = Clock(0.0)
    book = Book(concurrent, queued, PER_MINUTE, PER_MINUTE)
    ledger = make_ledger(
        clock,
        concurrent=concurrent,
        queued=queued,
        input_tokens_per_minute=PER_MINUTE,
        output_tokens_per_minute=PER_MINUTE,
    )
    charges: list[Charge] = []
    for action, number in actions:
        if action == "wait":
            clock.now_s += number / 4
            book.pass_quarters(number)
        elif action == "enter":
            if book.may_enter(number):
                charges.append(ledger.enter("acme", number))
                book.open.append([number, number, 0])
            else:
                refusal(ledger, number)
        elif charges:
            follow(action, number, charges, book)
        check_books(ledger, book)


def follow(action: str, number: int, charges: list[Charge], book: Book) -> None:
    """One action of the newest request."""
    charge, entry = charges[-1], book.open[-1]
    if action == "prompt" and not entry[2]:
        if number <= book.input:
            charge.take_input(number)
            entry[2] = number
            book.input -= number
        else:
            with pytest.raises(QuotaExceeded):
                charge.take_input(number)
    elif action == "first token":
        charge.on_first_token()
        entry[1] = max(0, entry[1] - 1)
        # From now on it has come to something.
        entry[2] = 0
    elif action == "output":
        charge.on_output(number)
        book.output -= number
    elif action in ("end", "come to nothing"):
        charges.pop().close(had_nothing=action == "come to nothing")
        book.open.pop()
        if action == "come to nothing":
            book.input = min(PER_MINUTE, book.input + entry[2])


def check_books(ledger: QuotaLedger, book: Book) -> None:
    status = status_of(ledger)
    assert status.num_concurrent == sum(sequences for sequences, _, _ in book.open)
    assert status.num_queued == sum(waiting for _, waiting, _ in book.open)
    assert status.input_tokens_share == pytest.approx(1 - book.input / PER_MINUTE)
    output_share = min(1.0, 1 - book.output / PER_MINUTE)
    assert status.output_tokens_share == pytest.approx(output_share)
