"""A comparison as Markdown, for documents."""

from collections.abc import Sequence

from omniserve.bench.colocate.comparison import describe_conditions
from omniserve.bench.colocate.control.rows import control_table
from omniserve.bench.colocate.facts import describe_generator, emulation, procedure
from omniserve.bench.colocate.measured import Measured
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.rows import goal_table, scene_table
from omniserve.bench.report.rows import TextTable


def markdown(facts: Sequence[str], plan: Plan, measured: Measured) -> str:
    """Facts, a table a scene, goals."""
    parts = ["\n".join(f"- {fact}" for fact in facts)]
    for held in measured.control:
        parts += [
            f"### {held.title}",
            held.conditions.text,
            markdown_table(control_table(held)),
            describe_generator([each.cell for each in held.cells]),
        ]
    for result in measured.scenes:
        parts += [
            f"### {result.scene.title}",
            describe_conditions(result.conditions),
            markdown_table(scene_table(result)),
            describe_generator(result.cells),
        ]
    parts += [
        "### Goals",
        markdown_table(goal_table(measured.goals(plan.backlog.num_requests))),
        *emulation(measured.frames),
        *procedure(plan),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(content: TextTable) -> str:
    lines = [content.headings, ["---"] * len(content.headings), *content.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
