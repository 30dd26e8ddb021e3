"""Which steps a calibration runs: scenes whose steps together span what a model can be asked."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_DECODE_STEPS, _FEW_STEPS = 12, 4
"""The first step behind a prompt finds caches full of other things; most must be others."""
_SHORT_CONTEXT = 32
_DECODE_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_CONTEXTS = (128, 512, 2048, 4096, 8192, 16384)
_ROWS_OF_CONTEXTS = (1, 4, 16, 64)
_CHUNKS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 65, 96, 128, 192, 256, 384, 512, 1024, 2048)
_MIXED = ((4, 16), (4, 64), (4, 256), (4, 512), (16, 32), (16, 128))
"""Decode rows, and tokens of a prompt that joins them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the model whose steps are measured."""

    kv_tokens: int
    """That its device memory holds."""
    block_tokens: int
    max_model_len: int
    max_running_requests: int
    max_step_tokens: int
    may_offload: bool = False
    """Whether best-effort decodes may have to leave a device that has room for them."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Requests that decode together for some steps; beside them, one more prompt may be computed.

    How many steps its prompts take, and of what shapes, is the scheduler's to say.
    """

    num_decodes: int
    context: int
    """Prompt tokens of each of them."""
    num_steps: int
    """Decode steps to measure, once all of them decode."""
    joining_prompt: int = 0
    """Tokens of a prompt that arrives after those steps; 0: none."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of all its requests."""
        return self.num_decodes * self.context + self.joining_prompt

    def fits(self, limits: Limits) -> bool:
        """Whether nobody of the scene has to wait for another."""
        longest = max(self.context, self.joining_prompt) + self.num_steps + _SPARE_TOKENS
        num_requests = self.num_decodes + (self.joining_prompt > 0)
        tokens = self.num_decodes * (self.context + self.num_steps) + self.joining_prompt
        reserve = num_requests * (limits.block_tokens + _SPARE_TOKENS)
        return (
            longest <= limits.max_model_len
            and num_requests <= limits.max_running_requests
            and self.num_decodes <= limits.max_step_tokens
            and tokens + reserve <= limits.kv_tokens
        )


_SPARE_TOKENS = 16
"""That a request may be given beyond what is measured."""


def scenes(limits: Limits) -> list[Scene]:
    """Those that fit, the quickest first."""
    fitting = {scene for scene in _candidates(limits) if scene.fits(limits)}
    return sorted(fitting, key=_work)


def thin(all_scenes: list[Scene], keep: int) -> list[Scene]:
    """About `keep` of them, evenly from the quickest to the longest, both included."""
    if len(all_scenes) <= keep:
        return all_scenes
    last = len(all_scenes) - 1
    return [all_scenes[round(place * last / (keep - 1))] for place in range(keep)]


def _candidates(limits: Limits) -> Iterator[Scene]:
    rows = [*_DECODE_ROWS, limits.max_running_requests]
    for num_rows in _up_to(rows, limits.max_running_requests):
        yield Scene(num_rows, _SHORT_CONTEXT, _DECODE_STEPS)
    for context in (*_CONTEXTS, limits.max_model_len - _DECODE_STEPS - _SPARE_TOKENS):
        for num_rows in _ROWS_OF_CONTEXTS:
            yield Scene(num_rows, context, _DECODE_STEPS)
    chunks = list(_up_to([*_CHUNKS, limits.max_step_tokens], limits.max_step_tokens))
    for chunk in chunks:
        yield Scene(1, chunk, 0)
    for num_rows, chunk in _MIXED:
        if chunk <= limits.max_step_tokens:
            yield Scene(num_rows, _SHORT_CONTEXT, _FEW_STEPS, joining_prompt=chunk)


def _up_to(numbers: Iterable[int], most: int) -> Iterator[int]:
    return (number for number in sorted(set(numbers)) if number <= most)


def _work(scene: Scene) -> tuple[int, int]:
    """Tokens to compute, about: what a scene's time goes by."""
    computed = scene.num_decodes * (scene.context + scene.num_steps) + scene.joining_prompt
    return computed, scene.num_decodes
