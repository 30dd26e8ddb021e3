"""Results on the terminal and on disk: page, markdown, JSON, a picture of control."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from omniserve.atomic_file import write_text
from omniserve.bench.colocate.comparison import describe_conditions
from omniserve.bench.colocate.control.plots import control_picture
from omniserve.bench.colocate.control.rows import control_table
from omniserve.bench.colocate.document import markdown
from omniserve.bench.colocate.facts import describe_generator, emulation, headline
from omniserve.bench.colocate.html import render_page
from omniserve.bench.colocate.measured import Measured
from omniserve.bench.colocate.plan import Plan
from omniserve.bench.colocate.rows import scene_table
from omniserve.bench.report.table import draw
from omniserve.terminal import make_console

PAGE_FILE, MARKDOWN_FILE, JSON_FILE = "colocate.html", "colocate.md", "colocate.json"
PICTURE_FILE = "control.svg"
TERMINAL_WIDTH = 132
"""Of a file or a pipe: tables must not be cut."""


def publish(directory: Path, plan: Plan, measured: Measured, took_s: float) -> None:
    """Writes all, prints the tables. Raises OSError."""
    facts = headline(plan, took_s)
    write_text(directory / PAGE_FILE, render_page(facts, plan, measured))
    write_text(directory / MARKDOWN_FILE, markdown(facts, plan, measured))
    write_text(directory / JSON_FILE, json.dumps(_content(facts, plan, measured), indent=1) + "\n")
    if measured.control:
        write_text(directory / PICTURE_FILE, control_picture(measured.control))
    console = make_console()
    if not console.is_terminal:
        console.width = TERMINAL_WIDTH
    _print_scenes(console, measured)
    console.print("\nGoals", style="bold")
    for goal in measured.goals(plan.backlog.num_requests):
        line = f"{goal.verdict}: {goal.text}: {goal.shown}, wanted {goal.wanted} ({goal.scene})"
        console.print(line, soft_wrap=True)
    for text in [*emulation(measured.frames), f"page: {directory / PAGE_FILE}"]:
        console.print(text, soft_wrap=True)


def _print_scenes(console: Console, measured: Measured) -> None:
    parts = [
        *(
            (each.title, each.conditions.text, control_table(each), [c.cell for c in each.cells])
            for each in measured.control
        ),
        *(
            (each.scene.title, describe_conditions(each.conditions), scene_table(each), each.cells)
            for each in measured.scenes
        ),
    ]
    for title, conditions, table, cells in parts:
        console.print(f"\n{title}", style="bold")
        console.print(conditions, soft_wrap=True)
        console.print(draw(table))
        console.print(describe_generator(cells), soft_wrap=True)


def _content(facts: list[str], plan: Plan, measured: Measured) -> dict[str, object]:
    goals = measured.goals(plan.backlog.num_requests)
    return {
        "facts": facts,
        "plan": asdict(plan),
        "control": [
            {
                "title": held.title,
                "load": asdict(held.load),
                "device_kv_bytes": held.scene.device_kv_bytes,
                "conditions": asdict(held.conditions),
                "contenders": [asdict(each) for each in held.cells],
            }
            for held in measured.control
        ],
        "scenes": [
            {
                "title": result.scene.title,
                "device_kv_bytes": result.scene.device_kv_bytes,
                "conditions": asdict(result.conditions),
                "contenders": [asdict(cell) for cell in result.cells],
            }
            for result in measured.scenes
        ],
        "goals": [asdict(goal) for goal in goals],
    }
