"""What has to be found before contenders can be compared: objectives, the rate of LS requests, and
how much best-effort work a pair of daemons may have."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from models_layouts import ONE, Pair

from omniserve.bench.colocate.conditions import Probe, nearest_rate, search_rate
from omniserve.bench.colocate.figures import Figures

RATES = (0.5, 16.0)
"""LS requests per second between which is searched for where two vLLM servers hold their share."""
MOST_BEHIND = 0.10
"""Of a layout's share, to the best one's: it is no more looked at."""
STARVED_TOKENS_PER_S = 1.0
"""With fewer the best-effort server gets nothing of the machine."""


@dataclass(frozen=True, slots=True)
class PeerWindow:
    """A pair of vLLM servers at a rate."""

    pair: Pair
    rate: float
    figures: Figures

    @property
    def share(self) -> float:
        return self.figures.ls_joint or 0.0


@dataclass(frozen=True, slots=True)
class PeerSearch:
    """The rate, and the best of the ways in which the servers share the machine."""

    windows: tuple[PeerWindow, ...]
    rate: float
    pair: Pair

    @property
    def share(self) -> float:
        """Of the pair at the rate."""
        at_rate = (each for each in self.windows if each.rate == self.rate)
        return max(each.share for each in at_rate if each.pair == self.pair)


MeasurePeer = Callable[[Pair, float], Awaitable[Figures]]


async def search_peer(candidates: Sequence[Pair], measure: MeasurePeer) -> PeerSearch:
    """Rates are those of the candidate that is best at each; who is far behind it drops out, and
    so does one that shares nothing, its best-effort server being starved, where another does."""
    standing, windows = list(candidates), list[PeerWindow]()

    async def probe(rate: float) -> Probe:
        nonlocal standing
        here = [PeerWindow(pair, rate, await measure(pair, rate)) for pair in standing]
        windows.extend(here)
        fed = [each for each in here if each.figures.be_tokens_per_s >= STARVED_TOKENS_PER_S]
        best = max(each.share for each in fed or here)
        standing = [each.pair for each in fed or here if each.share >= best - MOST_BEHIND]
        return Probe(rate, best)

    rate = nearest_rate(await search_rate(RATES, probe))
    at_rate = [each for each in windows if each.rate == rate and each.pair in standing]
    best = max(at_rate, key=lambda each: (each.share, each.figures.be_tokens_per_s))
    return PeerSearch(tuple(windows), rate, best.pair)


def unloaded_servers(daemons: Sequence[Pair], vllm: Sequence[Pair]) -> list[str]:
    """Of everybody who answers LS requests, so that objectives are such as all could meet."""
    return list(dict.fromkeys([ONE, *(pair.ls_server for pair in [*daemons, *vllm])]))
