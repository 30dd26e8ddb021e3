"""What every tenant has of its quota, and what each request takes of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from omniserve.access.quota_account import QuotaAccount
from omniserve.access.token_bucket import TokenBucket
from omniserve.config_tenant import TenantConfig
from omniserve.errors import Unauthenticated


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """A tenant's quota at one moment."""

    tenant: str
    num_concurrent: int
    num_queued: int
    input_tokens_share: float | None
    """Part of a minute's worth that is used up, 0 to 1; None where there is no such quota."""
    output_tokens_share: float | None
    num_refused: int
    """Counter: since the tenant was configured; begins anew where it was taken away meanwhile, and
    nothing of it ran then."""


class Charge:
    """What one request takes of its tenant's quota, until it is closed."""

    def __init__(
        self, account: QuotaAccount, num_sequences: int, clock: Callable[[], float]
    ) -> None:
        """The account has let it enter."""
        self._account = account
        self._num_sequences = self._num_queued = num_sequences
        self._num_input_tokens = 0
        """That may still be given back."""
        self._num_tokenised = 0
        """Tokens of its texts, of which no input was taken yet."""
        self._clock = clock

    def describe(self) -> str:
        """What its tenant has now, as timelines show it."""
        account = self._account
        parts = [_shown(account.concurrent.num_taken, account.concurrent.most, "concurrent")]
        parts.append(_shown(account.queued.num_taken, account.queued.most, "queued"))
        now_s = self._clock()
        for bucket, kind in ((account.input, "input"), (account.output, "output")):
            if bucket is not None:
                used = bucket.used_share(now_s)
                parts.append(f"{used:.0%} of {bucket.per_minute} {kind} tokens a minute")
        return f"tenant {account.tenant!r} now has {', '.join(parts)}"

    def on_tokenised(self, num_tokens: int) -> None:
        """A text of its prompts turned out to have so many tokens."""
        self._num_tokenised += num_tokens

    def take_input(self, num_tokens: int) -> None:
        """Its prompts have so many tokens; raises QuotaExceeded or InvalidRequest."""
        self._account.take_input(num_tokens, self._clock())
        self._num_input_tokens = num_tokens
        self._num_tokenised = 0

    def on_first_token(self) -> None:
        """Of one of its sequences."""
        self.stop_waiting(1)
        self._keep_input()

    def stop_waiting(self, num_sequences: int) -> None:
        """So many of its sequences do not wait any more, if so many did."""
        num_freed = min(num_sequences, self._num_queued)
        self._num_queued -= num_freed
        self._account.queued.free(num_freed)

    def on_failure(self) -> None:
        """It is going to be closed, once its client has taken what is there."""
        self.stop_waiting(self._num_sequences)

    def on_output(self, num_tokens: int) -> None:
        """So many tokens were generated."""
        self._account.take_output(num_tokens, self._clock())

    def close(self, *, had_nothing: bool) -> None:
        """The request is over; called once. `had_nothing`: the server refused it after all, before
        it computed anything for it, and so its prompts are not counted.

        Texts that were tokenised for a request that could not be are charged.
        """
        account = self._account
        self.stop_waiting(self._num_sequences)
        account.concurrent.free(self._num_sequences)
        if had_nothing:
            account.give_input_back(self._num_input_tokens, self._clock())
        else:
            account.take_tokenised(self._num_tokenised, self._clock())
            self._keep_input()

    def _keep_input(self) -> None:
        self._account.keep_input(self._num_input_tokens)
        self._num_input_tokens = 0


class QuotaLedger:
    """Of all tenants that are configured, and of those that were while requests of theirs are here.

    A request enters before its prompt is tokenised: a tenant that sends too many costs little.
    """

    def __init__(
        self, tenants: Sequence[TenantConfig], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._accounts: dict[str, QuotaAccount] = {}
        self._configured: tuple[str, ...] = ()
        self.set_tenants(tenants)

    def set_tenants(self, tenants: Sequence[TenantConfig]) -> None:
        """These quotas hold from now on; what requests have taken stays taken."""
        now_s = self._clock()
        accounts = {
            name: account
            for name, account in self._accounts.items()
            if account.concurrent.num_taken
        }
        for tenant in tenants:
            account = self._accounts.get(tenant.name)
            if account is None:
                account = QuotaAccount(tenant.name, tenant.quota, now_s)
            else:
                account.set_quota(tenant.quota, now_s)
            accounts[tenant.name] = account
        self._accounts = accounts
        self._configured = tuple(tenant.name for tenant in tenants)

    def enter(self, tenant: str, num_sequences: int) -> Charge:
        """A request of so many sequences came, which takes their places until it is closed.

        Raises:
            QuotaExceeded: its tenant has too much now.
            InvalidRequest: its tenant may never have so many at once.
            Unauthenticated: the tenant is not configured any more.
        """
        account = self._account(tenant)
        account.enter(num_sequences, self._clock())
        return Charge(account, num_sequences, self._clock)

    def check_input(self, tenant: str) -> None:
        """Text came that is to be tokenised and nothing else.

        Raises QuotaExceeded where nothing is left for it, or Unauthenticated as `enter` does.
        """
        self._account(tenant).check_input(self._clock())

    def take_tokenised(self, tenant: str, num_tokens: int) -> None:
        """It had so many tokens."""
        if tenant in self._accounts:
            self._accounts[tenant].take_tokenised(num_tokens, self._clock())

    def _account(self, tenant: str) -> QuotaAccount:
        if tenant not in self._configured:
            raise Unauthenticated("the token is not known any more")
        return self._accounts[tenant]

    @property
    def accounts(self) -> Iterator[QuotaAccount]:
        """Of the tenants that are configured, in the order of the file."""
        return (self._accounts[name] for name in self._configured)

    def tenants_status(self) -> tuple[TenantStatus, ...]:
        """Of the tenants that are configured, in the order of the file."""
        now_s = self._clock()
        return tuple(
            TenantStatus(
                tenant=account.tenant,
                num_concurrent=account.concurrent.num_taken,
                num_queued=account.queued.num_taken,
                input_tokens_share=_used_share(account.input, now_s),
                output_tokens_share=_used_share(account.output, now_s),
                num_refused=sum(account.num_refused.values()),
            )
            for account in self.accounts
        )


def _used_share(bucket: TokenBucket | None, now_s: float) -> float | None:
    return None if bucket is None else bucket.used_share(now_s)


def _shown(num_taken: int, most: int | None, what: str) -> str:
    return f"{num_taken} {what}" if most is None else f"{num_taken} of {most} {what}"
