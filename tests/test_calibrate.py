"""Calibration: what is measured, and what is made of it."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from omniserve.bench.run_record import RequestRecord, RunRecord, StreamInfo
from omniserve.engine.core import Engine
from omniserve.errors import CheckpointError
from omniserve.profiling import fit as fit_module
from omniserve.profiling.cases import Limits, Scene, scenes, thin
from omniserve.profiling.fit import TooFewSteps, fit_steps, observe
from omniserve.profiling.host_fit import fit_host, judge_active
from omniserve.profiling.measuring_process import measuring
from omniserve.profiling.medley import Medley, medleys
from omniserve.profiling.messages import (
    HostMeasured,
    HostSample,
    Identify,
    StepSample,
)
from omniserve.profiling.nonnegative import (
    nonnegative_least_deviations,
    nonnegative_least_squares,
)
from omniserve.profiling.profile import FrontLatency
from omniserve.profiling.scenes import SceneRunner, limits_of, run_scene
from omniserve.profiling.timed_engine import TimedEngine
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.simulate.calibration.front import (
    FrontFigures,
    Load,
    figures_of,
    fit_front,
    median_of,
)
from scheduler.step_time import StepCosts, StepShape

LIMITS = Limits(
    kv_tokens=16384,
    block_tokens=32,
    max_model_len=8192,
    max_running_requests=64,
    max_step_tokens=512,
)
TRUE_COSTS = StepCosts(
    overhead_s=5e-4,
    dense_ladder=((1, 1e-3), (8, 1.2e-3), (64, 4e-3), (512, 3e-2)),
    decode_row_s=1e-5,
    decode_context_token_s=2e-8,
    prefill_pair_s=3e-9,
)


def shapes() -> list[StepShape]:
    """Decode batches of several contexts, and prompts of several lengths and places."""
    decodes = [
        StepShape(num_decode_rows=rows, decode_context_tokens=rows * context, num_sampled_rows=rows)
        for rows in (1, 2, 4, 8, 16, 32, 64)
        for context in (32, 512, 4096)
    ]
    prompts = [
        StepShape(
            num_prefill_tokens=tokens,
            prefill_pairs=tokens * start + tokens * (tokens + 1) // 2,
            num_sampled_rows=1,
        )
        for tokens in (2, 8, 32, 64, 128, 256, 512)
        for start in (0, 512, 4096)
    ]
    return decodes + prompts


def samples(factor: float = 1.0, others_cores: float = 0.0) -> list[StepSample]:
    made = []
    for scene, shape in enumerate(shapes()):
        seconds = factor * TRUE_COSTS.step_s(shape)
        around_s = factor * TRUE_COSTS.overhead_s
        made.append(
            StepSample(scene, 0, shape, seconds, seconds - around_s, around_s, others_cores)
        )
    return made


class TestScenes:
    @given(
        st.builds(
            Limits,
            kv_tokens=st.integers(64, 1 << 18),
            block_tokens=st.sampled_from((16, 32)),
            max_model_len=st.integers(64, 1 << 15),
            max_running_requests=st.integers(1, 300),
            max_step_tokens=st.integers(16, 4096),
        )
    )
    def test_nobody_of_a_scene_has_to_wait(self, limits: Limits) -> None:
        for scene in scenes(limits):
            num = scene.num_decodes + (scene.joining_prompt > 0)
            blocks_each = -(-(scene.context + scene.num_steps) // limits.block_tokens)
            prompt_blocks = -(-scene.joining_prompt // limits.block_tokens)
            blocks = scene.num_decodes * blocks_each + prompt_blocks
            assert blocks * limits.block_tokens <= limits.kv_tokens
            assert num <= limits.max_running_requests
            assert scene.context + scene.num_steps <= limits.max_model_len

    def test_a_usual_model_gets_every_kind(self) -> None:
        found = scenes(LIMITS)
        assert max(scene.num_decodes for scene in found) == LIMITS.max_running_requests
        assert max(scene.context for scene in found) > 8000
        assert any(scene.joining_prompt for scene in found)
        assert len(found) == len(set(found))

    def test_thinning_keeps_both_ends(self) -> None:
        found = scenes(LIMITS)
        kept = thin(found, 10)
        assert len(kept) == 10
        assert (kept[0], kept[-1]) == (found[0], found[-1])
        assert thin(found, 1000) == found


class TestNonnegativeLeastSquares:
    @settings(max_examples=30)
    @given(st.integers(0, 1 << 30))
    def test_no_subset_of_coefficients_does_better(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        matrix, target = draw.normal(size=(8, 4)), draw.normal(size=8)
        found = nonnegative_least_squares(matrix, target)
        assert (found >= 0).all()
        assert np.linalg.norm(matrix @ found - target) <= _best_residual(matrix, target) + 1e-9

    def test_coefficients_that_are_not_negative_are_found(self) -> None:
        draw = np.random.default_rng(1)
        matrix, wanted = draw.uniform(size=(20, 3)), np.array([2.0, 0.0, 1e-7])
        assert nonnegative_least_squares(matrix, matrix @ wanted) == pytest.approx(wanted, abs=1e-9)

    def test_a_fifth_of_outliers_do_not_move_the_least_deviations(self) -> None:
        draw = np.random.default_rng(2)
        matrix, wanted = draw.uniform(size=(60, 3)), np.array([1.0, 0.0, 0.3])
        target = matrix @ wanted
        target[::5] *= 3.0
        found = nonnegative_least_deviations(matrix, target, np.ones(60))
        assert found == pytest.approx(wanted, abs=0.02)
        assert np.abs(nonnegative_least_squares(matrix, target) - wanted).max() > 0.1


def _best_residual(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """By trying all sets of coefficients that are free: the others are 0."""
    best = float(np.linalg.norm(target))
    for size in range(1, matrix.shape[1] + 1):
        for columns in combinations(range(matrix.shape[1]), size):
            part = matrix[:, columns]
            solution = np.linalg.lstsq(part, target, rcond=None)[0]
            if (solution >= 0).all():
                best = min(best, float(np.linalg.norm(part @ solution - target)))
    return best


class TestFitSteps:
    def test_steps_that_follow_the_model_are_told(self) -> None:
        fit = fit_steps(observe(samples()))
        for shape in shapes():
            assert fit.costs.step_s(shape) == pytest.approx(TRUE_COSTS.step_s(shape), rel=0.02)
        between = StepShape(num_decode_rows=24, decode_context_tokens=24 * 1000)
        assert fit.costs.step_s(between) == pytest.approx(TRUE_COSTS.step_s(between), rel=0.1)
        assert fit.costs.overhead_s == pytest.approx(TRUE_COSTS.overhead_s, rel=0.01)
        assert fit.held_out is not None
        assert fit.held_out.mean > 0.9
        assert fit.quiet_share == 1.0

    def test_what_others_disturbed_does_not_count(self) -> None:
        quiet = fit_steps(observe(samples()))
        both = fit_steps(observe(samples() + samples(5.0, others_cores=1.0)))
        assert both.costs == quiet.costs

    def test_of_disturbed_steps_the_shortest_count(self) -> None:
        fit = fit_steps(observe(samples(1.0, 0.5) + samples(5.0, others_cores=1.0)))
        assert fit.quiet_share == 0.0
        shape = shapes()[0]
        assert fit.costs.step_s(shape) == pytest.approx(TRUE_COSTS.step_s(shape), rel=0.05)

    def test_the_spread_of_steps_is_kept(self) -> None:
        factors = (0.9, 1.0, 1.0, 1.0, 1.5)
        fit = fit_steps(observe([each for factor in factors for each in samples(factor)]))
        assert fit.ratio_quantiles[0] == pytest.approx(0.9)
        assert fit.ratio_quantiles[-1] == pytest.approx(1.5)
        assert list(fit.ratio_quantiles) == sorted(fit.ratio_quantiles)

    def test_the_hosts_part_is_no_part_of_a_devices_pipeline(self) -> None:
        fit = fit_steps(observe(samples()), pipeline_depth=2)
        shape = shapes()[0]
        device_s = fit.costs.step_s(shape) - fit.costs.overhead_s
        assert device_s == pytest.approx(TRUE_COSTS.step_s(shape), rel=0.02)
        assert fit.launch_s > 0.0

    def test_slow_steps_among_others_do_not_count(self) -> None:
        """Each twice as it is, and once by far slower: as when something is made on first use."""
        fit = fit_steps(observe(samples(4.0) + samples() + samples()))
        for shape in shapes():
            assert fit.costs.step_s(shape) == pytest.approx(TRUE_COSTS.step_s(shape), rel=0.02)

    def test_chunks_and_cold_caches_are_told_apart(self) -> None:
        costs = replace(TRUE_COSTS, prefill_chunk_s=3e-4, prefill_step_s=2e-4, cold_step_s=4e-4)
        varied = [
            replace(
                shape,
                num_prefill_chunks=chunks if shape.num_prefill_tokens else 0,
                coldness=coldness,
            )
            for chunks, coldness in ((1, 0.0), (2, 0.9), (4, 0.2))
            for shape in shapes()
        ]
        fit = fit_steps(
            observe(
                [
                    StepSample(scene, 0, shape, costs.step_s(shape), 0.0, costs.overhead_s)
                    for scene, shape in enumerate(varied)
                ]
            )
        )
        assert fit.costs.cold_step_s == pytest.approx(costs.cold_step_s, rel=0.05)
        assert fit.costs.prefill_chunk_s == pytest.approx(costs.prefill_chunk_s, rel=0.05)
        for shape in varied:
            assert fit.costs.step_s(shape) == pytest.approx(costs.step_s(shape), rel=0.02)

    def test_slow_prompts_are_not_taken_for_slow_attention(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Few prompts, the longest of them beside somebody who was not seen: a fit that is free
        finds attention that takes many times as long, and with it prompts of ten times the
        length."""
        few = [each for each in samples() if not each.shape.num_prefill_tokens]
        prompt = StepShape(num_prefill_tokens=512, prefill_pairs=512 * 513 // 2, num_sampled_rows=1)
        for place, tokens in enumerate((32, 128, 512, 512)):
            shape = replace(
                prompt, num_prefill_tokens=tokens, prefill_pairs=tokens * (tokens + 1) // 2
            )
            start = 512 * (place == 3)
            shape = replace(shape, prefill_pairs=shape.prefill_pairs + tokens * start)
            seconds = TRUE_COSTS.step_s(shape) * (2.5 if start else 1.0)
            few.append(StepSample(1000 + 2 * place, 0, shape, seconds, seconds, 5e-4))
        late = replace(prompt, prefill_pairs=512 * 4096 + prompt.prefill_pairs)
        bounded = fit_steps(observe(few)).costs
        assert bounded.prefill_pair_s <= 1.5 * TRUE_COSTS.decode_context_token_s
        assert bounded.step_s(late) < 2.5 * TRUE_COSTS.step_s(late)
        monkeypatch.setattr(fit_module, "_most_pair_s", lambda solution, knots: math.inf)
        free = fit_steps(observe(few)).costs
        assert free.prefill_pair_s > 20 * TRUE_COSTS.prefill_pair_s
        assert free.step_s(late) > 5 * TRUE_COSTS.step_s(late)

    def test_too_few_steps_are_refused(self) -> None:
        with pytest.raises(TooFewSteps, match="3 kinds"):
            fit_steps(observe(samples()[:3]))


class TestFitHost:
    BYTES_PER_S, ROW_S, DELAY_S, LANE_ROW_S = 4e9, 2e-5, 3e-4, 5e-5
    NUM_LAYERS = 4

    def busy(self, context: int) -> HostSample:
        """The host sets the pace: 1000 rows a second are read one after the other."""
        num_rows, row_bytes = 1000, context * 1024
        seconds = num_rows * (self.ROW_S + row_bytes / self.BYTES_PER_S)
        return self.sample(0, 32, context, seconds, num_rows, num_rows * row_bytes, 500)

    def alone(self) -> HostSample:
        """Each hop takes a step of its own, of which one layer has anything to compute."""
        step_s = TRUE_COSTS.step_s(StepShape(num_lane_rows=1.0)) + self.LANE_ROW_S
        layer_s = (step_s - TRUE_COSTS.overhead_s) / self.NUM_LAYERS
        hop_s = TRUE_COSTS.overhead_s + layer_s + self.ROW_S + 1024 / self.BYTES_PER_S
        return self.sample(0, 1, 1, 100 * (hop_s + self.DELAY_S), 100, 100 * 1024, 100)

    def beside_ls(self) -> HostSample:
        shape = StepShape(num_decode_rows=4, decode_context_tokens=400, num_lane_rows=8.0)
        seconds = 100 * (TRUE_COSTS.step_s(shape) + 8 * self.LANE_ROW_S)
        return self.sample(4, 64, 100, seconds, 100 * 8 * self.NUM_LAYERS, 1, 100)

    def sample(
        self,
        num_ls: int,
        num: int,
        context: int,
        seconds: float,
        rows: int,
        num_bytes: int,
        steps: int,
    ) -> HostSample:
        return HostSample(seconds, steps, num_ls, 100 * num_ls, num, context, rows, 0, num_bytes)

    def test_each_part_is_found(self) -> None:
        measured = HostMeasured(
            (self.alone(), self.busy(64), self.busy(2048), self.beside_ls()), 7e9, None
        )
        host, costs = fit_host(measured, TRUE_COSTS, self.NUM_LAYERS)
        assert host.kv_bytes_per_s == pytest.approx(self.BYTES_PER_S, rel=0.01)
        assert host.task_overhead_s == pytest.approx(self.ROW_S, rel=0.01)
        assert host.result_delay_s == pytest.approx(self.DELAY_S, rel=0.02)
        assert host.copy_bytes_per_s == 7e9
        assert costs.lane_row_s == pytest.approx(self.LANE_ROW_S, rel=0.01)
        assert replace(costs, lane_row_s=0.0) == TRUE_COSTS

    def active_steps(self, active: StepCosts) -> tuple[StepSample, ...]:
        shapes_with_rows = [
            shape.with_lane_rows(num_rows) for num_rows in (0.0, 2.0, 9.0) for shape in shapes()
        ]
        return tuple(
            StepSample(0, place, shape, active.step_s(shape), 0.0, 0.0)
            for place, shape in enumerate(shapes_with_rows)
        )

    def test_what_the_hosts_work_costs_all_steps_is_found(self) -> None:
        active = replace(TRUE_COSTS.times(1.2), lane_row_s=6e-5)
        active = replace(active, overhead_s=active.overhead_s + 3e-4)
        measured = HostMeasured((self.busy(64),), 7e9, None, self.active_steps(active))
        _, costs = fit_host(measured, TRUE_COSTS, self.NUM_LAYERS)
        for step in measured.steps:
            assert costs.step_s(step.shape) == pytest.approx(step.seconds, rel=0.01)
        assert costs.lane_row_s == pytest.approx(6e-5, rel=0.05)

    def test_a_device_with_cores_of_its_own_is_not_slowed(self) -> None:
        active = replace(TRUE_COSTS, lane_row_s=6e-5)
        measured = HostMeasured((self.busy(64),), 7e9, None, self.active_steps(active))
        _, costs = fit_host(measured, TRUE_COSTS, self.NUM_LAYERS, takes_cores=False)
        assert replace(costs, lane_row_s=0.0) == TRUE_COSTS
        assert costs.lane_row_s == pytest.approx(6e-5, rel=0.01)

    def test_single_steps_say_what_a_lane_row_costs_and_judge_it(self) -> None:
        steps = tuple(
            self.step(place, num_lane_rows=1.0 + place % 7, others_cores=float(place % 8 == 5))
            for place in range(40)
        )
        samples = (self.alone(), self.busy(64), self.busy(2048))
        measured = HostMeasured(samples, 7e9, None, steps)
        _, costs = fit_host(measured, TRUE_COSTS, self.NUM_LAYERS)
        assert costs.lane_row_s == pytest.approx(self.LANE_ROW_S, rel=1e-6)
        judged = judge_active(measured, costs)
        # Of four steps one is kept from the fit; of those, half were disturbed.
        assert len(judged) == 5
        assert all(step.accuracy == pytest.approx(1.0) for step in judged)

    def test_steps_that_no_lane_row_joined_judge_none(self) -> None:
        steps = tuple(self.step(place, place % 8 // 4, 0.0) for place in range(40))
        measured = HostMeasured((self.busy(64),), 7e9, None, steps)
        judged = judge_active(measured, TRUE_COSTS)
        assert [step.shape.num_lane_rows for step in judged] == [1] * 5

    def step(self, place: int, num_lane_rows: float, others_cores: float) -> StepSample:
        """Twice as long where others disturbed it."""
        shape = StepShape(num_decode_rows=4, num_lane_rows=num_lane_rows, num_sampled_rows=4)
        seconds = TRUE_COSTS.step_s(shape) + num_lane_rows * self.LANE_ROW_S
        return StepSample(0, place, shape, (1.0 + others_cores) * seconds, 0, 0, others_cores)


class TestFitFront:
    STEP_S, PROMPT_S, NUM = 2e-3, 3e-3, 8

    def figures(self, front: FrontLatency) -> FrontFigures:
        """An engine whose steps all take the same."""
        lone_s = self.STEP_S + front.stolen_s_per_step + front.stolen_s_per_token
        full_s = self.STEP_S + front.stolen_s_per_step + self.NUM * front.stolen_s_per_token
        return FrontFigures(
            ttft_s=self.PROMPT_S + front.way_in_s + front.way_out_s + front.stolen_s_per_request,
            lone_token_s=lone_s,
            token_s=full_s / self.NUM,
            request_s=self.PROMPT_S + full_s / self.NUM + front.stolen_s_per_request,
        )

    @pytest.mark.parametrize(
        "front",
        [
            FrontLatency(),
            FrontLatency(way_in_s=2e-3, way_out_s=2e-3),
            FrontLatency(4e-3, 2e-3, 1e-3, 3e-4, 2e-4),
            FrontLatency(4e-3, 2e-3, 0.0, 0.0, 2e-4),
        ],
    )
    def test_the_front_that_was_there_is_found(self, front: FrontLatency) -> None:
        found = fit_front(self.figures(front), self.figures)
        assert self.figures(found) == pytest.approx(self.figures(front))
        assert found.stolen_s_per_token == pytest.approx(front.stolen_s_per_token)

    def test_nothing_is_negative(self) -> None:
        """Noise may make a daemon look faster than its engine."""
        found = fit_front(FrontFigures(1e-3, 1e-3, 1e-4, 1e-3), self.figures)
        assert found == FrontLatency()

    def test_medians_are_of_each_figure(self) -> None:
        rounds = [FrontFigures(1, 20, 5, 7), FrontFigures(3, 10, 5, 8), FrontFigures(2, 30, 5, 9)]
        assert median_of(rounds) == FrontFigures(2, 20, 5, 8)

    def test_figures_are_of_the_measured_part(self) -> None:
        def record(load: Load, times_s: list[float]) -> RunRecord:
            request = RequestRecord(load.value, 0, times_s[0] - 0.5, 64, 16)
            request.token_times_s, request.outcome = times_s, "done"
            info = StreamInfo(load.value, "best_effort", "m")
            return RunRecord("", "", [info], duration_s=10.0, requests=[request])

        found = figures_of(
            {
                Load.ALONE: record(Load.ALONE, [1.0, 1.1, 1.2]),
                Load.ONE: record(Load.ONE, [1.0, 2.0]),
                Load.LONG: record(Load.LONG, [9.0, 9.5, 10.5]),
                Load.SHORT: record(Load.SHORT, [1.0, 2.0, 3.0, 4.0]),
            }
        )
        assert found.ttft_s == pytest.approx(0.5)
        assert found.lone_token_s == pytest.approx(5.0)
        assert found.token_s == pytest.approx(5.0)
        assert found.request_s == pytest.approx(5.0)


@pytest.fixture(scope="module")
def timed_engine(tiny_checkpoint: Path) -> Iterator[TimedEngine]:
    model = ModelSettings("tiny", str(tiny_checkpoint), "float32", device_kv_bytes=4 << 20)
    settings = EngineSettings(DeviceSettings("cpu", threads=1), (model,))
    engine = Engine(settings)
    engine.warm_up()
    timed = TimedEngine(engine, model, seed=1)
    yield timed
    timed.close()
    engine.close()


class TestMeasuring:
    def test_scenes_are_run_as_planned(self, timed_engine: TimedEngine) -> None:
        taken = run_scene(timed_engine, 7, Scene(3, 20, 4, joining_prompt=10))
        assert not timed_engine.engine.has_unfinished
        assert {sample.scene for sample in taken} == {7}
        kinds = Counter(
            (sample.shape.num_decode_rows, sample.shape.num_prefill_tokens) for sample in taken
        )
        assert kinds == {(0, 60): 1, (3, 0): 4, (3, 10): 1}
        first, *decodes = [sample.shape for sample in taken[:5]]
        assert first.prefill_pairs == 3 * 20 * 21 // 2
        assert first.prefill_context_tokens == 3 * 20
        assert [shape.decode_context_tokens for shape in decodes] == [63, 66, 69, 72]
        assert all(sample.seconds > sample.layers_s > 0 for sample in taken)

    def test_every_round_of_a_medley_has_the_same_steps(self, timed_engine: TimedEngine) -> None:
        medley = Medley(2, 0.2, num_steps=30, longest_prompt=40, longest_output=6)
        rounds = [
            # What ran before the first step is another thing.
            [replace(sample.shape, coldness=0.0) for sample in run_scene(timed_engine, 0, medley)]
            for _ in range(2)
        ]
        assert rounds[0] == rounds[1]
        assert len(rounds[0]) == medley.num_steps
        assert {bool(shape.num_prefill_tokens) for shape in rounds[0]} == {True, False}
        assert any(shape.num_decode_rows > 2 for shape in rounds[0])

    def test_scenes_are_run_until_they_are_undisturbed(self, timed_engine: TimedEngine) -> None:
        limits = limits_of(timed_engine)
        assert limits.max_step_tokens == timed_engine.runtime.scheduler.settings.max_step_tokens
        assert all(isinstance(each, Medley) for each in medleys(limits))
        runner = SceneRunner(timed_engine, [Scene(1, 4, 2), Scene(2, 4, 2)])
        rounds = runner.run(budget_s=1000.0)
        seen: set[int] = set()
        # On a slow machine not all of them are run before it is looked who disturbed them.
        while len(seen) < 2:
            new = {sample.scene for sample in next(rounds)}
            assert not new & seen
            seen |= new
        assert seen == {0, 1}
        assert runner.measured_s > 0.0
        # Whoever else is on this machine: nobody is undisturbed often enough after one round.
        assert runner.lacking == [0, 1]
        assert runner.done <= 1 / 3
        assert not list(runner.run(budget_s=0.0))

    def test_what_the_engine_cannot_do_is_said(self, tmp_path: Path) -> None:
        models = (ModelSettings("m", str(tmp_path)),)
        command = Identify(EngineSettings(DeviceSettings("cpu"), models))
        with measuring(command) as answers, pytest.raises(CheckpointError, match="config.json"):
            list(answers)
