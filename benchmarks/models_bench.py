"""The benchmark of two models: what has to be found, then round after round of all contenders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models_equal import Trial, equal_or_nearest, search_equal, trial_of
from models_layouts import Pair, be_alone, ls_alone, one_daemon, pairs, server_plans
from models_options import LS_RATE_WITHOUT_VLLM
from models_plan import ModelsPlan, scene_of
from models_search import PeerSearch, search_peer, unloaded_servers
from models_turns import Turns

from omniserve.bench.colocate.conditions import NUM_PROBES, UNLOADED_WARM_UP_S
from omniserve.bench.colocate.figures import Cell, Figures, figures_of
from omniserve.bench.colocate.objectives import Objectives, Unloaded, objectives_of, unloaded_of
from omniserve.bench.colocate.outlook import Outlook
from omniserve.bench.colocate.plan import WindowKey
from omniserve.bench.colocate.prepare import Prepared
from omniserve.bench.colocate.scene_run import SceneRun
from omniserve.bench.colocate.server_plan import ServerPlan
from omniserve.bench.colocate.windows import Windows
from omniserve.bench.colocate.workload import LS_STREAM
from omniserve.bench.load.options import LoadOptions

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PairSearch:
    """One pair of daemons, brought to the attainment of one daemon."""

    pair: Pair
    trials: tuple[Trial, ...]
    chosen: Trial


@dataclass(frozen=True, slots=True)
class Result:
    """All that was measured."""

    unloaded: dict[str, Unloaded]
    objectives: Objectives
    rate: float
    peer: PeerSearch | None
    """None without vLLM, or where the rate was given."""
    own: Trial
    """One daemon under the arrivals that pairs were searched with."""
    searches: tuple[PairSearch, ...]
    cells: tuple[Cell, ...]

    def cell(self, key: str) -> Cell:
        return next(each for each in self.cells if each.contender == key)


class ModelsBench:
    """Measures what a directory lacks of a plan."""

    def __init__(self, plan: ModelsPlan, prepared: Prepared, directory: Path, say: Say) -> None:
        self._plan = plan
        self._workload = prepared.workload
        self._launch = prepared.launch
        self._scene = scene_of(prepared)
        self._windows = Windows(directory)
        self._say = say
        self._wanted: frozenset[str] = frozenset()
        settings = plan.settings
        self._daemons = pairs("omniserve", settings.daemon_layouts)
        self._vllm = pairs("vllm", settings.vllm_layouts) if plan.with_vllm else []

    async def run(self) -> Result:
        """Leaves nothing running, however it ends. Raises OmniServeError."""
        tries = self._plan.comparison.max_tries
        async with SceneRun(
            self._scene,
            self._servers,
            self._launch,
            self._windows,
            self._outlook(),
            tries,
            self._say,
        ) as run:
            return await self._run(run)

    async def _run(self, run: SceneRun) -> Result:
        unloaded = await self._unloaded(run)
        objectives = objectives_of(unloaded)
        self._say(f"objectives: TTFT {objectives.ttft_ms:.0f} ms, TPOT {objectives.tpot_ms:.1f} ms")
        peer, rate = await self._rate(run, objectives)
        chosen_peers = self._vllm if peer is None else [peer.pair]
        self._say(f"{rate:g} LS requests/s")
        alone, one = ls_alone(), one_daemon(self._plan.num_be)
        without_ls = be_alone(self._plan.num_be)
        together = [*self._daemons, *chosen_peers]
        await self._want(
            run,
            objectives,
            [*alone.servers, *one.servers, *(key for pair in together for key in pair.servers)],
        )
        turns = Turns(self._plan.comparison, self._workload, run, objectives)
        own = trial_of(self._plan.num_be, figures_of(await turns.searching(one, rate)))
        searches = [await self._search(run, turns, pair, rate, own) for pair in self._daemons]
        equal = [each.pair.contender(each.chosen.num_be) for each in searches]
        peers = [pair.contender(self._plan.num_be) for pair in chosen_peers]
        records = await turns.rounds([alone, without_ls, one, *equal, *peers], rate)
        return Result(
            unloaded,
            objectives,
            rate,
            peer,
            own,
            tuple(searches),
            tuple(Cell(key, tuple(map(figures_of, each))) for key, each in records.items()),
        )

    async def _unloaded(self, run: SceneRun) -> dict[str, Unloaded]:
        plan = self._plan.comparison
        servers = unloaded_servers(self._daemons, self._vllm)
        self._wanted = frozenset(servers)
        found = {}
        for server in servers:
            options = LoadOptions(
                duration_s=plan.unloaded_s,
                warm_up_s=UNLOADED_WARM_UP_S,
                drain_s=0.0,
                seed=plan.seed,
                title=f"{server}, unloaded",
            )
            key = WindowKey(run.scene.key, f"unloaded-{server}")
            streams = {LS_STREAM: self._workload.unloaded(run.scene, server)}
            found[server] = unloaded_of(await run.window(key, streams, options))
        return found

    async def _rate(self, run: SceneRun, objectives: Objectives) -> tuple[PeerSearch | None, float]:
        given = self._plan.comparison.ls_rate
        if given is not None or not self._vllm:
            return None, LS_RATE_WITHOUT_VLLM if given is None else given
        await self._want(run, objectives, [key for pair in self._vllm for key in pair.servers])
        turns = Turns(self._plan.comparison, self._workload, run, objectives)

        async def measure(pair: Pair, rate: float) -> Figures:
            return figures_of(await turns.searching(pair.contender(self._plan.num_be), rate))

        peer = await search_peer(self._vllm, measure)
        run.skip(max(0, self._num_rate_windows - len(peer.windows)))
        return peer, peer.rate

    async def _search(
        self, run: SceneRun, turns: Turns, pair: Pair, rate: float, own: Trial
    ) -> PairSearch:
        async def measure(num_be: int) -> Trial:
            record = await turns.searching(pair.contender(num_be), rate)
            return trial_of(num_be, figures_of(record))

        most = self._plan.settings.search_windows
        trials = await search_equal(self._plan.num_be, own.ls_joint, measure, most)
        run.skip(most - len(trials))
        chosen = equal_or_nearest(trials, own.ls_joint)
        self._say(
            f"{pair.title}: {chosen.num_be} BE requests, LS {chosen.ls_joint:.0%} where one daemon "
            f"has {own.ls_joint:.0%}"
        )
        return PairSearch(pair, trials, chosen)

    async def _want(self, run: SceneRun, objectives: Objectives, keys: Sequence[str]) -> None:
        """These servers and no others, with the objectives."""
        self._wanted = frozenset(keys)
        await run.hold_to(objectives)

    def _servers(self, objectives: Objectives | None) -> list[ServerPlan]:
        return server_plans(self._scene, self._wanted, objectives)

    @property
    def _num_rate_windows(self) -> int:
        """About: after the first rate one way of sharing is mostly left."""
        if not self._vllm or self._plan.comparison.ls_rate is not None:
            return 0
        return NUM_PROBES + len(self._vllm) - 1

    def _outlook(self) -> Outlook:
        plan, num_pairs = self._plan.comparison, len(self._daemons)
        num_unloaded = len(unloaded_servers(self._daemons, self._vllm))
        num_searched = 1 + num_pairs * self._plan.settings.search_windows
        num_peers = min(1, len(self._vllm)) if plan.ls_rate is None else len(self._vllm)
        num_compared = plan.rounds * (3 + num_pairs + num_peers)
        num_windows = num_unloaded + self._num_rate_windows + num_searched + num_compared
        return Outlook(num_windows, 1, plan.window_s + plan.drain_s)
