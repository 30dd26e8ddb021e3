"""What one client request was promised, and whether it got that."""

from dataclasses import dataclass
from math import inf

from omniserve.requests import EngineRequest, RequestOutput


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which objectives of a tier a request met."""

    ttft: bool
    tpot: bool
    """Also met by a request that had no token after its first."""

    @property
    def both(self) -> bool:
        return self.ttft and self.tpot


class Promise:
    """Held against what the front saw: times count from the request's arrival there.

    Where a request goes on in its tier's fallback, nothing more is promised from then on: neither
    of its later tokens, nor, if it goes there at once, of any.
    """

    def __init__(self, arrival_s: float, sequence: EngineRequest) -> None:
        """`sequence` is one of the request's; all have the same objectives and deadline."""
        self._arrival_s = arrival_s
        self._objectives = sequence.objectives
        self._most_tokens = sequence.rules.demote_after_tokens or inf
        self._deadline_s = inf if sequence.deadline_s is None else sequence.deadline_s
        self._first_s: dict[int, float] = {}
        self._last: dict[int, tuple[float, int]] = {}
        """Time and number of the last token to which the objectives apply, by choice."""
        self._last_s = arrival_s

    def note(self, index: int, output: RequestOutput, now_s: float) -> None:
        """Tokens of choice `index` came now."""
        self._last_s = now_s
        if output.tier:
            if index not in self._first_s:
                self._objectives = None
            return
        self._first_s.setdefault(index, now_s)
        num_tokens = output.num_output_tokens
        if num_tokens <= self._most_tokens or index not in self._last:
            self._last[index] = (now_s, num_tokens)

    def verdict(self, *, is_complete: bool) -> Verdict | None:
        """None where there were no objectives; `is_complete`: it had all its tokens."""
        objectives = self._objectives
        if objectives is None:
            return None
        ttft_s = min(self._first_s.values(), default=inf) - self._arrival_s
        return Verdict(
            ttft_s <= objectives.ttft_s, is_complete and self._tpot_s <= objectives.tpot_s
        )

    @property
    def _tpot_s(self) -> float:
        means = [
            (last_s - self._first_s[index]) / (num_tokens - 1)
            for index, (last_s, num_tokens) in self._last.items()
            if num_tokens > 1
        ]
        return sum(means) / len(means) if means else 0.0

    @property
    def is_kept(self) -> bool:
        """Of a request that had all its tokens: whether all of it came as promised."""
        verdict = self.verdict(is_complete=True)
        return self._last_s <= self._deadline_s and (verdict is None or verdict.both)
