"""Scenes of control: round after round, load after load, contender after contender."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from omniserve.bench.colocate.contenders import Contender, rotated
from omniserve.bench.colocate.control.conditions import (
    ControlConditions,
    find_control_conditions,
    num_condition_windows,
)
from omniserve.bench.colocate.control.contenders import control_contenders, control_servers
from omniserve.bench.colocate.control.control_plan import ControlPlan
from omniserve.bench.colocate.control.figures import ControlCell, slice_figures
from omniserve.bench.colocate.control.loads import LOADS, Load, Slice, requests_of, slices_of
from omniserve.bench.colocate.figures import Cell, figures_of
from omniserve.bench.colocate.fleet import Launch
from omniserve.bench.colocate.frames import frame
from omniserve.bench.colocate.outlook import Outlook
from omniserve.bench.colocate.plan import Plan, WindowKey
from omniserve.bench.colocate.scene import Memory, ModelPaths, Scene
from omniserve.bench.colocate.scene_run import SceneRun
from omniserve.bench.colocate.windows import Windows
from omniserve.bench.colocate.workload import Workload
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.run_record import RunRecord

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ControlResult:
    """One load in one scene, every contender."""

    scene: Scene
    load: Load
    conditions: ControlConditions
    cells: tuple[ControlCell, ...]

    @property
    def title(self) -> str:
        return f"Control, {self.load.title} ({self.scene.title})"

    def cell(self, contender: str) -> Cell | None:
        return next((each.cell for each in self.cells if each.cell.contender == contender), None)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One window."""

    load: Load
    contender: Contender
    round_index: int

    def is_of(self, load: Load, contender: str) -> bool:
        return self.load == load and self.contender.key == contender


class ControlComparison:
    """Measures what a directory lacks of a plan."""

    def __init__(
        self,
        plan: Plan,
        control: ControlPlan,
        workload: Workload,
        memory: Memory,
        launch: Launch,
        directory: Path,
    ) -> None:
        self._plan = plan
        self._control = control
        self._workload = workload
        self._memory = memory
        self._launch = replace(launch, directory=launch.directory / "control", vllm_python=None)
        self._directory = directory

    async def run(self, say: Say) -> list[ControlResult]:
        """Leaves nothing running, however it ends. Raises OmniServeError."""
        scenes, windows = self._scenes(), Windows(self._directory)
        outlook = self._outlook(len(scenes))
        wanted = frozenset(turn.contender.ls_server for turn in self._turns())
        results: list[ControlResult] = []
        for scene in scenes:
            servers_for = partial(control_servers, scene, wanted)
            run = SceneRun(
                scene, servers_for, self._launch, windows, outlook, self._control.max_tries, say
            )
            async with run:
                results += await self._results(run, say)
        return results

    async def _results(self, run: SceneRun, say: Say) -> list[ControlResult]:
        conditions = await find_control_conditions(
            run, _key(run.scene), self._plan, self._control, self._workload
        )
        say(conditions.text)
        await run.hold_to(conditions.objectives)
        records = {turn: await self._window(run, conditions, turn) for turn in self._turns()}
        results = []
        for load in map(LOADS.__getitem__, self._control.loads):
            cells = [
                self._cell(
                    [(turn, record) for turn, record in records.items() if turn.is_of(load, key)],
                    conditions,
                )
                for key in self._contenders(load)
            ]
            results.append(ControlResult(run.scene, load, conditions, tuple(cells)))
        return results

    def _turns(self) -> list[_Turn]:
        """In an order in which whatever changes with time meets all contenders alike."""
        return [
            _Turn(load, contender, round_index)
            for round_index in range(self._control.rounds)
            for load in map(LOADS.__getitem__, self._control.loads)
            for contender in rotated(list(self._contenders(load).values()), round_index)
        ]

    def _contenders(self, load: Load) -> dict[str, Contender]:
        num_be = self._plan.backlog.num_requests
        found = control_contenders(load.name, self._control.choice, num_be)
        return {each.key: each for each in found}

    async def _window(self, run: SceneRun, conditions: ControlConditions, turn: _Turn) -> RunRecord:
        control, seed = self._control, self._seed(turn)
        contender, number = turn.contender, turn.round_index + 1
        arrivals = requests_of(self._slices(turn, conditions), self._workload.ls_trace, seed)
        streams = self._workload.timed_streams(
            run.scene, contender, arrivals, turn.round_index, conditions.objectives
        )
        options = LoadOptions(
            duration_s=control.duration_s,
            warm_up_s=self._warm_up_s(turn.load),
            drain_s=control.drain_s,
            seed=self._plan.seed + turn.round_index,
            title=f"{turn.load.name}: {contender.title}, round {number}",
        )
        key = WindowKey(_key(run.scene), f"{turn.load.name}-{contender.key}-{number}")
        return await run.window(key, streams, options)

    def _cell(
        self, windows: Sequence[tuple[_Turn, RunRecord]], conditions: ControlConditions
    ) -> ControlCell:
        """Of one contender under one load, in the order of the rounds."""
        return ControlCell(
            Cell(windows[0][0].contender.key, tuple(figures_of(each) for _, each in windows)),
            tuple(slice_figures(each, self._slices(turn, conditions)) for turn, each in windows),
        )

    def _slices(self, turn: _Turn, conditions: ControlConditions) -> list[Slice]:
        control = self._control
        return slices_of(
            turn.load,
            conditions.base_rate(turn.load),
            self._warm_up_s(turn.load),
            control.duration_s,
            self._seed(turn),
        )

    def _warm_up_s(self, load: Load) -> float:
        return self._control.warm_up_s + load.build_up_s

    def _seed(self, turn: _Turn) -> str:
        """The same for all contenders."""
        return f"{self._plan.seed} {turn.round_index}"

    def _scenes(self) -> list[Scene]:
        paths = ModelPaths(Path(self._plan.ls_model), Path(self._plan.be_model))
        return [
            Scene(frame(choice.frame), choice.shape, number, self._memory, paths)
            for choice in self._control.scenes
            for number in choice.be_requests_in_kv
        ]

    def _outlook(self, num_scenes: int) -> Outlook:
        control = self._control
        turns = self._turns()
        num_windows = num_condition_windows(control) + len(turns)
        window_s = control.warm_up_s + control.duration_s + control.drain_s
        build_up_s = sum(turn.load.build_up_s for turn in turns) / num_windows
        return Outlook(num_scenes * num_windows, num_scenes, window_s + build_up_s)


def _key(scene: Scene) -> str:
    return f"control-{scene.key}"
