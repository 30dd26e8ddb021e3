"""What one tenant has of its quota now."""

from collections import Counter
from typing import Literal

from omniserve.access.places import Places
from omniserve.access.token_bucket import TokenBucket
from omniserve.config_tenant import QuotaConfig
from omniserve.errors import InvalidRequest, QuotaExceeded

QuotaName = Literal["concurrent", "queued", "input_tokens", "output_tokens"]

_LEAST_WAIT_S = 0.1
"""Of what a refused request is told."""


class QuotaAccount:
    """Looks before it takes: what is refused takes nothing. `now_s` is on a monotonic clock.

    Requests are counted in sequences: one with several prompts or choices takes the place of many.
    """

    def __init__(self, tenant: str, quota: QuotaConfig, now_s: float) -> None:
        self.tenant = tenant
        self.concurrent = Places(quota.concurrent)
        self.queued = Places(quota.queued)
        self.input = _bucket(None, quota.input_tokens_per_minute, now_s)
        self.output = _bucket(None, quota.output_tokens_per_minute, now_s)
        self.num_requests = 0
        """Counter, as those below: client requests that came."""
        self.num_refused: Counter[QuotaName] = Counter()
        self.num_input_tokens = 0
        """Of requests that came to something, and tokenised text: a counter takes nothing back."""
        self.num_output_tokens = 0

    def set_quota(self, quota: QuotaConfig, now_s: float) -> None:
        """What is taken stays taken, be it more than there is from now on."""
        self.concurrent.most = quota.concurrent
        self.queued.most = quota.queued
        self.input = _bucket(self.input, quota.input_tokens_per_minute, now_s)
        self.output = _bucket(self.output, quota.output_tokens_per_minute, now_s)

    def enter(self, num_sequences: int, now_s: float) -> None:
        """A request came, of whose prompts nothing is known yet.

        Raises QuotaExceeded, and InvalidRequest where no time would be the right one for it.
        """
        self.num_requests += 1
        counted: tuple[tuple[QuotaName, Places, str], ...] = (
            ("concurrent", self.concurrent, "here at the same time"),
            ("queued", self.queued, "waiting for their first token"),
        )
        for quota, places, what in counted:
            if places.most is not None and num_sequences > places.most:
                raise InvalidRequest(
                    f"n: {num_sequences} sequences in one request are more than tenant "
                    f"{self.tenant!r} may have {what}; allowed: up to {places.most}",
                    "n",
                )
            wait_s = places.wait_s(num_sequences, now_s)
            if wait_s:
                text = f"has {places.num_taken} of {places.most} requests {what}"
                raise self._refusal(quota, text, wait_s)
        self._check_tokens("output_tokens", self.output, 1, now_s)
        self._check_tokens("input_tokens", self.input, 1, now_s)
        self.concurrent.take(num_sequences)
        self.queued.take(num_sequences)

    def take_input(self, num_tokens: int, now_s: float) -> None:
        """A request that has entered turned out to be so long; raises as `enter` does."""
        bucket = self.input
        if bucket is not None:
            if num_tokens > bucket.per_minute:
                raise InvalidRequest(
                    f"prompt: {num_tokens} tokens are more than tenant {self.tenant!r} may send in "
                    f"a minute; allowed: up to {bucket.per_minute}",
                    "prompt",
                )
            self._check_tokens("input_tokens", bucket, num_tokens, now_s)
            bucket.take(num_tokens, now_s)

    def check_input(self, now_s: float) -> None:
        """Text came to be tokenised for its own sake; raises QuotaExceeded where nothing is left
        for it."""
        self._check_tokens("input_tokens", self.input, 1, now_s)

    def take_tokenised(self, num_tokens: int, now_s: float) -> None:
        """Text was tokenised that no request goes on with: there is nothing to refuse any more.

        It costs a minute's worth at most, so that one text too long leaves no debt of hours.
        """
        if self.input is not None:
            num_tokens = min(num_tokens, self.input.per_minute)
            self.input.take(num_tokens, now_s)
        self.num_input_tokens += num_tokens

    def give_input_back(self, num_tokens: int, now_s: float) -> None:
        if self.input is not None:
            self.input.give_back(num_tokens, now_s)

    def keep_input(self, num_tokens: int) -> None:
        """They will not be given back."""
        self.num_input_tokens += num_tokens

    def take_output(self, num_tokens: int, now_s: float) -> None:
        """They were generated: there is nothing to refuse any more."""
        if self.output is not None:
            self.output.take(num_tokens, now_s)
        self.num_output_tokens += num_tokens

    def _check_tokens(
        self, quota: QuotaName, bucket: TokenBucket | None, num_tokens: int, now_s: float
    ) -> None:
        wait_s = 0.0 if bucket is None else bucket.wait_s(num_tokens, now_s)
        if bucket is not None and wait_s:
            kind = quota.replace("_", " ")
            own = f"of its {bucket.per_minute} {kind} a minute"
            text = f"has used up all {own}"
            if num_tokens > 1:
                text = f"has too few {own} left for the {num_tokens} of this request"
            raise self._refusal(quota, text, wait_s)

    def _refusal(self, quota: QuotaName, text: str, wait_s: float) -> QuotaExceeded:
        self.num_refused[quota] += 1
        hint_s = max(_LEAST_WAIT_S, wait_s)
        message = f"tenant {self.tenant!r} {text}; try again in {hint_s:.1f} s"
        return QuotaExceeded(message, hint_s, quota)


def _bucket(before: TokenBucket | None, per_minute: int | None, now_s: float) -> TokenBucket | None:
    """As the quota says now, with what was used of it before."""
    if per_minute is None:
        return None
    if before is None:
        return TokenBucket(per_minute, now_s)
    before.resize(per_minute, now_s)
    return before
