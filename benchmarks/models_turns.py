"""Windows of the benchmark of two models, under LS requests and a best-effort backlog."""

from collections.abc import Sequence
from dataclasses import replace

from models_layouts import BE_ALONE, title_of

from omniserve.bench.colocate.contenders import Contender, rotated
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.plan import Plan, WindowKey
from omniserve.bench.colocate.scene_run import SceneRun
from omniserve.bench.colocate.workload import Workload
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.run_record import RunRecord


class Turns:
    """Arrivals, lengths and objectives are the same for all contenders of a round."""

    def __init__(
        self, plan: Plan, workload: Workload, run: SceneRun, objectives: Objectives
    ) -> None:
        self._plan = plan
        self._workload = workload
        self._run = run
        self._objectives = objectives

    async def searching(self, contender: Contender, rate: float) -> RunRecord:
        """One window, with arrivals that no round has: what is chosen by it is chosen by luck,
        too, and has to show itself under others."""
        name = f"search-{rate:g}-{contender.key}"
        return await self._window(contender, rate, self._plan.rounds, name, "searching")

    async def rounds(
        self, contenders: Sequence[Contender], rate: float
    ) -> dict[str, list[RunRecord]]:
        """A window of each in every round, by contender, in the order in which they are given."""
        records: dict[str, list[RunRecord]] = {each.key: [] for each in contenders}
        for index in range(self._plan.rounds):
            for contender in rotated(contenders, index):
                name = f"{rate:g}-{contender.key}-{index + 1}"
                record = await self._window(contender, rate, index, name, f"round {index + 1}")
                records[contender.key].append(record)
        return records

    async def _window(
        self, contender: Contender, rate: float, round_index: int, name: str, said: str
    ) -> RunRecord:
        plan = self._plan
        options = LoadOptions(
            duration_s=plan.duration_s,
            warm_up_s=plan.warm_up_s,
            drain_s=plan.drain_s,
            seed=plan.seed + round_index,
            title=f"{title_of(contender.key)}, {rate:g} LS requests/s, {said}",
        )
        scene = self._run.scene
        arrivals = self._workload.arrivals(rate, round_index)
        if contender.key == BE_ALONE:
            # A run's streams have requests; this one's comes after the window.
            late = replace(arrivals.requests[0], arrival_s=2 * plan.window_s)
            arrivals = replace(arrivals, requests=(late,))
        streams = self._workload.timed_streams(
            scene, contender, arrivals, round_index, self._objectives
        )
        return await self._run.window(WindowKey(scene.key, name), streams, options)
