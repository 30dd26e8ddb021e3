"""A comparison as Markdown, for documents."""

from collections.abc import Sequence

from omniserve.bench.colocate.comparison import SceneResult, describe_conditions
from omniserve.bench.colocate.facts import describe_generator, emulation, procedure
from omniserve.bench.colocate.goals import goal_results
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.rows import goal_table, scene_table
from omniserve.bench.report.rows import TextTable


def markdown(facts: Sequence[str], plan: Plan, results: Sequence[SceneResult]) -> str:
    """Facts, a table a scene, goals."""
    parts = ["\n".join(f"- {fact}" for fact in facts)]
    for result in results:
        parts += [
            f"### {result.scene.title}",
            describe_conditions(result.conditions),
            _table(scene_table(result)),
            describe_generator(result),
        ]
    parts += [
        "### Goals",
        _table(goal_table(goal_results(results, plan.backlog.num_requests))),
        *emulation(results),
        *procedure(plan),
    ]
    return "\n\n".join(parts) + "\n"


def _table(content: TextTable) -> str:
    lines = [content.headings, ["---"] * len(content.headings), *content.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
