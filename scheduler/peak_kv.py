"""The most KV that running requests will hold at one time, if each ends when it is expected to."""

from collections.abc import Iterable


def peak_tokens(requests: Iterable[tuple[int, int]]) -> int:
    """Of (tokens held now, tokens still to come) of each request.

    Requests hold the most just before one of them ends: those that go on as long or longer have
    grown by as many tokens as it has. The reckoning of the Past-Future scheduler (LightLLM).
    """
    peak = held = 0
    longest_first = sorted(requests, key=lambda each: each[1], reverse=True)
    for rank, (num_held, num_to_come) in enumerate(longest_first, start=1):
        held += num_held
        peak = max(peak, held + rank * num_to_come)
    return peak
