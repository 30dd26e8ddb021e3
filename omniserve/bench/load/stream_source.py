"""Where a stream's requests come from: a file, a sample of the package, or a recipe."""

import math
from pathlib import Path

from omniserve.bench.load.stream_fields import Fields
from omniserve.bench.trace.formats.read_write import MAX_TOKENS, read_trace
from omniserve.bench.trace.samples import sample_trace
from omniserve.bench.trace.synth.recipes import named_recipe
from omniserve.bench.trace.synth.synthesise import synthesise
from omniserve.bench.trace.trace import Trace
from omniserve.bench.trace.transform import scale, slice_trace, spread_ticks

SAMPLE, SYNTH = "sample:", "synth:"


def timed_trace(fields: Fields, total_s: float, seed: int) -> Trace:
    """The trace of `trace`, cut, scaled and clipped as the fields say; one that is made by a
    recipe is as long as the run. Raises ConfigError."""
    source = _source(fields)
    start_s = fields.number("start_s", is_zero_allowed=True) or 0.0
    end_s = fields.number("end_s") or math.inf
    rate, speed = fields.number("rate"), fields.number("speed") or 1.0
    if source.startswith(SYNTH):
        recipe = named_recipe(source.removeprefix(SYNTH))
        duration_s = min(start_s + total_s * speed, end_s)
        trace = synthesise(recipe, seed, rate_per_s=rate, duration_s=duration_s)
    else:
        trace = spread_ticks(_recorded(source), seed)
    if start_s > 0 or end_s < math.inf:
        trace = slice_trace(trace, start_s, end_s)
    if rate is not None and not source.startswith(SYNTH):
        speed *= rate / _mean_rate(trace)
    return _clipped(fields, scale(trace, rate=speed))


def lengths_of_trace(fields: Fields, num_requests: int, seed: int) -> Trace:
    """The same for a backlog, to which times do not matter; a recipe makes `num_requests`."""
    source = _source(fields)
    if source.startswith(SYNTH):
        recipe = named_recipe(source.removeprefix(SYNTH))
        return _clipped(fields, synthesise(recipe, seed, num_requests=num_requests))
    return _clipped(fields, _recorded(source))


def _source(fields: Fields) -> str:
    source = fields.text("trace")
    if not source:
        raise fields.refuse("trace", source, f"FILE, {SAMPLE}NAME or {SYNTH}RECIPE")
    return source


def _recorded(source: str) -> Trace:
    if source.startswith(SAMPLE):
        return sample_trace(source.removeprefix(SAMPLE))
    return read_trace(Path(source))


def _mean_rate(trace: Trace) -> float:
    """Requests a second; of a trace without a length, as if it were a second long."""
    return len(trace) / (trace.duration_s or 1.0)


def _clipped(fields: Fields, trace: Trace) -> Trace:
    return scale(
        trace,
        max_prompt_tokens=fields.whole_number("max_prompt", MAX_TOKENS),
        max_output_tokens=fields.whole_number("max_output", MAX_TOKENS),
    )
