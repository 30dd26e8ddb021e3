"""What a user may name where a trace is wanted: a file, a sample, or a recipe."""

from pathlib import Path

from omniserve.bench.trace.formats.read_write import FORMATS, read_trace
from omniserve.bench.trace.samples import SAMPLES, sample_trace
from omniserve.bench.trace.synth.fitted import recipe_like
from omniserve.bench.trace.synth.recipes import RECIPES, Recipe, named_recipe
from omniserve.bench.trace.synth.synthesise import synthesise
from omniserve.bench.trace.trace import Trace

_SAMPLE, _SYNTH, _LIKE = "sample:", "synth:", "like:"


def open_trace(source: str, format: str | None = None) -> Trace:
    """FILE, sample:NAME or synth:RECIPE; a file is read in `format`, or in the one it looks like.
    Raises TraceError."""
    if source.startswith(_SYNTH):
        return synthesise(open_recipe(source.removeprefix(_SYNTH)))
    if source.startswith(_SAMPLE):
        return sample_trace(source.removeprefix(_SAMPLE))
    return read_trace(Path(source), format)


def open_recipe(name: str) -> Recipe:
    """The recipe of that name, or like:TRACE for one that imitates a trace. Raises TraceError."""
    if name.startswith(_LIKE):
        return recipe_like(open_trace(name.removeprefix(_LIKE)))
    return named_recipe(name)


def known_names() -> str:
    """What can be named, as a text of lines."""
    width = max(map(len, RECIPES))
    lines = [
        "samples (of Azure's LLM inference traces of 2023, CC-BY 4.0):",
        *(f"  {_SAMPLE}{name}" for name in SAMPLES),
        "recipes:",
        *(f"  {_SYNTH}{name.ljust(width)}  {each.about}" for name, each in RECIPES.items()),
        "formats of files:",
        f"  {', '.join(FORMATS)}",
    ]
    return "\n".join(lines) + "\n"
