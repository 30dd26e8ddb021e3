"""The page of a comparison."""

from collections.abc import Sequence

from omniserve.bench.colocate.comparison import SceneResult, describe_conditions
from omniserve.bench.colocate.control.comparison import ControlResult
from omniserve.bench.colocate.control.plots import control_charts, control_colour_keys
from omniserve.bench.colocate.control.rows import control_table
from omniserve.bench.colocate.facts import describe_generator, emulation, procedure
from omniserve.bench.colocate.measured import Measured
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.plots import budget_figures, colour_keys, trade_figure
from omniserve.bench.colocate.rows import goal_table, scene_table
from omniserve.bench.report.rows import TextTable
from omniserve.charts.page import figure, figures, header, legend, page, paragraphs, section, table

TITLE = "Best-effort work beside latency-sensitive work"


def render_page(facts: Sequence[str], plan: Plan, measured: Measured) -> str:
    """One self-contained document."""
    goals = goal_table(measured.goals(plan.backlog.num_requests))
    body = [
        header(TITLE, facts),
        section("Goals", _table(goals)),
        *(_control_section(result) for result in measured.control),
        *(_budget_section(group) for group in grouped(measured.scenes) if len(group) > 1),
        *(_scene_section(result) for result in measured.scenes),
        section("What is emulated", paragraphs(emulation(measured.frames))),
        section("How it was measured", paragraphs(procedure(plan))),
    ]
    return page(TITLE, "\n".join(body))


def grouped(results: Sequence[SceneResult]) -> list[list[SceneResult]]:
    """Scenes that differ in their memory only."""
    groups: dict[tuple[str, str], list[SceneResult]] = {}
    for result in results:
        groups.setdefault((result.scene.frame.name, result.scene.shape), []).append(result)
    return list(groups.values())


def _control_section(result: ControlResult) -> str:
    return section(
        result.title,
        paragraphs([result.conditions.text])
        + _table(control_table(result))
        + legend(control_colour_keys([result]))
        + figures([figure(each.title, each.caption, each.chart) for each in control_charts(result)])
        + paragraphs([describe_generator([each.cell for each in result.cells])]),
    )


def _budget_section(group: Sequence[SceneResult]) -> str:
    scene = group[0].scene
    content = legend(colour_keys(group)) + figures(budget_figures(group))
    return section(f"Over the memory budget: {scene.frame.name}, {scene.shape_title}", content)


def _scene_section(result: SceneResult) -> str:
    return section(
        result.scene.title,
        paragraphs([describe_conditions(result.conditions)])
        + _table(scene_table(result))
        + legend(colour_keys([result]))
        + figures([trade_figure(result)])
        + paragraphs([describe_generator(result.cells)]),
    )


def _table(content: TextTable) -> str:
    return table(content.headings, content.rows)
