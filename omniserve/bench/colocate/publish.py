"""Results on the terminal and on disk: page, markdown, JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omniserve.atomic_file import write_text
from omniserve.bench.colocate.comparison import SceneResult, describe_conditions
from omniserve.bench.colocate.document import markdown
from omniserve.bench.colocate.facts import describe_generator, emulation, headline
from omniserve.bench.colocate.goals import goal_results
from omniserve.bench.colocate.html import render_page
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.rows import scene_table
from omniserve.bench.report.table import draw
from omniserve.terminal import make_console

PAGE_FILE, MARKDOWN_FILE, JSON_FILE = "colocate.html", "colocate.md", "colocate.json"
TERMINAL_WIDTH = 132
"""Of a file or a pipe: tables must not be cut."""


def publish(directory: Path, plan: Plan, results: Sequence[SceneResult], took_s: float) -> None:
    """Writes all three, prints the tables. Raises OSError."""
    facts = headline(plan, took_s)
    write_text(directory / PAGE_FILE, render_page(facts, plan, results))
    write_text(directory / MARKDOWN_FILE, markdown(facts, plan, results))
    write_text(directory / JSON_FILE, json.dumps(_content(facts, plan, results), indent=1) + "\n")
    console = make_console()
    if not console.is_terminal:
        console.width = TERMINAL_WIDTH
    for result in results:
        console.print(f"\n{result.scene.title}", style="bold")
        console.print(describe_conditions(result.conditions), soft_wrap=True)
        console.print(draw(scene_table(result)))
        console.print(describe_generator(result), soft_wrap=True)
    console.print("\nGoals", style="bold")
    for goal in goal_results(results, plan.backlog.num_requests):
        line = f"{goal.verdict}: {goal.text}: {goal.shown}, wanted {goal.wanted} ({goal.scene})"
        console.print(line, soft_wrap=True)
    for text in [*emulation(results), f"page: {directory / PAGE_FILE}"]:
        console.print(text, soft_wrap=True)


def _content(facts: list[str], plan: Plan, results: Sequence[SceneResult]) -> dict[str, object]:
    goals = goal_results(results, plan.backlog.num_requests)
    return {
        "facts": facts,
        "plan": asdict(plan),
        "scenes": [
            {
                "title": result.scene.title,
                "device_kv_bytes": result.scene.device_kv_bytes,
                "conditions": asdict(result.conditions),
                "contenders": [asdict(cell) for cell in result.cells],
            }
            for result in results
        ],
        "goals": [asdict(goal) for goal in goals],
    }
