"""The whole comparison: scene after scene, round after round, contender after contender."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from omniserve.bench.colocate.conditions import Conditions, find_conditions, num_condition_windows
from omniserve.bench.colocate.contenders import Contender, contenders, rotated, server_plans
from omniserve.bench.colocate.figures import Cell, figures_of
from omniserve.bench.colocate.fleet import Launch
from omniserve.bench.colocate.frames import frame
from omniserve.bench.colocate.outlook import Outlook
from omniserve.bench.colocate.plan import Plan, WindowKey
from omniserve.bench.colocate.scene import Memory, ModelPaths, Scene, SceneChoice
from omniserve.bench.colocate.scene_run import SceneRun
from omniserve.bench.colocate.windows import Windows
from omniserve.bench.colocate.workload import Workload
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.run_record import RunRecord

Say = Callable[[str], None]


@dataclass(slots=True)
class SceneResult:
    """One scene, every contender."""

    scene: Scene
    conditions: Conditions
    cells: list[Cell] = field(default_factory=list)

    def cell(self, contender: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.contender == contender), None)


class Comparison:
    """Measures what a directory lacks of a plan."""

    def __init__(
        self, plan: Plan, workload: Workload, memory: Memory, launch: Launch, directory: Path
    ) -> None:
        self._plan = plan
        self._workload = workload
        self._memory = memory
        self._launch = launch
        self._directory = directory

    async def run(self, say: Say) -> list[SceneResult]:
        """Leaves nothing running, however it ends. Raises OmniServeError."""
        windows, outlook = Windows(self._directory), self._outlook()
        results = []
        for choice in self._plan.scenes:
            conditions = None
            for scene in self._scenes(choice):
                run = SceneRun(
                    scene,
                    partial(server_plans, scene, self._num_be, self._plan.vllm is not None),
                    self._launch,
                    windows,
                    outlook,
                    self._plan.max_tries,
                    say,
                )
                async with run:
                    if conditions is None:
                        conditions = await find_conditions(run, self._plan, self._workload)
                        say(describe_conditions(conditions))
                    await run.hold_to(conditions.objectives)
                    cells = await self._cells(run, conditions)
                results.append(SceneResult(scene, conditions, cells))
        return results

    async def _cells(self, run: SceneRun, conditions: Conditions) -> list[Cell]:
        everyone = self._contenders(run.scene)
        records: dict[str, list[RunRecord]] = {contender.key: [] for contender in everyone}
        for round_index in range(self._plan.rounds):
            for contender in rotated(everyone, round_index):
                record = await self._window(run, conditions, contender, round_index)
                records[contender.key].append(record)
        return [Cell(key, tuple(map(figures_of, each))) for key, each in records.items()]

    async def _window(
        self, run: SceneRun, conditions: Conditions, contender: Contender, round_index: int
    ) -> RunRecord:
        plan = self._plan
        options = LoadOptions(
            duration_s=plan.duration_s,
            warm_up_s=plan.warm_up_s,
            drain_s=plan.drain_s,
            seed=plan.seed + round_index,
            title=f"{run.scene.title}: {contender.title}, round {round_index + 1}",
        )
        streams = self._workload.streams(
            run.scene, contender, conditions.rate, round_index, conditions.objectives
        )
        key = WindowKey.of(run.scene.key, contender, round_index)
        return await run.window(key, streams, options)

    def _scenes(self, choice: SceneChoice) -> list[Scene]:
        paths = ModelPaths(Path(self._plan.ls_model), Path(self._plan.be_model))
        return [
            Scene(frame(choice.frame), choice.shape, number, self._memory, paths)
            for number in choice.be_requests_in_kv
        ]

    def _contenders(self, scene: Scene) -> list[Contender]:
        return contenders(scene, self._num_be, self._plan.vllm is not None)

    @property
    def _num_be(self) -> int:
        return self._plan.backlog.num_requests

    def _outlook(self) -> Outlook:
        plan = self._plan
        scenes = [scene for choice in plan.scenes for scene in self._scenes(choice)]
        windows = plan.rounds * sum(len(self._contenders(scene)) for scene in scenes)
        num_found = len(plan.scenes) * num_condition_windows(plan)
        return Outlook(windows + num_found, len(scenes), plan.window_s + plan.drain_s)


def describe_conditions(conditions: Conditions) -> str:
    """One line."""
    medians = ", ".join(
        f"{server} {each.ttft_ms:.0f}/{each.tpot_ms:.1f}"
        for server, each in conditions.unloaded.items()
    )
    objectives = conditions.objectives
    probes = "; ".join(f"{each.share:.0%} at {each.rate:g}" for each in conditions.probes)
    found = f" (vLLM held {probes}, one window each)" if probes else ""
    return (
        f"unloaded p50 TTFT/TPOT ms: {medians}; objectives: TTFT {objectives.ttft_ms:.0f} ms, "
        f"TPOT {objectives.tpot_ms:.1f} ms; {conditions.rate:g} LS requests/s{found}"
    )
