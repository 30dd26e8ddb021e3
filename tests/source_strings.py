"""Every string of the sources, as whoever reads a message may look for it."""

import ast
import itertools
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("omniserve", "cpu_attn", "scheduler")
GAP = "…"
MAX_EXPANSIONS = 16


@cache
def templates() -> tuple[str, ...]:
    """Every string of the sources, with gaps where something is filled in that is not known."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            known = assigned_strings(tree)
            for node in ast.walk(tree):
                found.update(expansions(node, known))
    return tuple(found)


def assigned_strings(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """What names of a module may stand for."""
    known: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            values = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            texts = [each for each in values if isinstance(each, ast.Constant | ast.JoinedStr)]
            known.setdefault(node.targets[0].id, []).extend(texts)
    return known


def expansions(node: ast.AST, known: dict[str, list[ast.expr]], depth: int = 3) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if not isinstance(node, ast.JoinedStr):
        return []
    choices = [expansions(part, known) or [GAP] for part in node.values]
    for place, part in enumerate(node.values):
        if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and depth:
            inner = [
                text
                for each in known.get(part.value.id, ())
                for text in expansions(each, known, depth - 1)
            ]
            choices[place] = [*inner, GAP]
    every = itertools.islice(itertools.product(*choices), MAX_EXPANSIONS)
    return ["".join(parts) for parts in every]


def logged_events() -> set[str]:
    """What the daemon's processes log, by name."""
    found = set()
    for path in sorted((ROOT / "omniserve").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "log_event":
                name = node.args[1]
                if isinstance(name, ast.Constant):
                    found.add(str(name.value))
    return found
