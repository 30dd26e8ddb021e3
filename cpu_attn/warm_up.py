"""Compiling before the first request: what takes seconds to compile is loaded in milliseconds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from cpu_attn.kernel_cache import num_compiled, num_lost
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.merge import merge_partials
from cpu_attn.paged_kernel import attention_kernel


@dataclass(frozen=True, slots=True)
class WarmKernel:
    """A kernel that is ready for use."""

    name: str
    variant: KernelVariant | None
    """None: not a kernel of attention."""
    from_cache: bool
    """Nothing had to be compiled: it was on disk, or in this process already."""
    is_kept: bool
    """False where it was compiled and could not be saved: the next process compiles it again."""
    seconds: float


@dataclass(frozen=True, slots=True)
class WarmUpStep:
    """Told before a kernel is made ready, without `done`, and again after it, with `done`."""

    number: int
    """From 1 to total."""
    total: int
    name: str
    done: WarmKernel | None


Progress = Callable[[WarmUpStep], None]


@dataclass(frozen=True, slots=True)
class WarmUpJob:
    """Something to make ready."""

    name: str
    make_ready: Callable[[], object]
    variant: KernelVariant | None = None


def warm_up(
    variants: Iterable[KernelVariant], *, progress: Progress | None = None
) -> tuple[WarmKernel, ...]:
    """Compiles what attention of these variants needs, or loads it from `cache_folder()`.

    One result for each different variant in the order given, then one for `merge_partials`. After
    it `paged_attention` finds these kernels ready, and so do other processes where they could be
    saved. Raises TypeError, before anything is compiled, for a variant that is not a KernelVariant;
    what `progress` raises ends it.
    """
    return run_jobs([*attention_jobs(variants), MERGE_JOB], progress)


def attention_jobs(variants: Iterable[KernelVariant]) -> list[WarmUpJob]:
    """One for each different variant. Raises TypeError for what is none."""
    jobs = {}
    for variant in variants:
        if not isinstance(variant, KernelVariant):
            raise TypeError(f"variants: {variant!r} is not a KernelVariant")
        jobs[variant] = _attention_job(variant)
    return list(jobs.values())


def _attention_job(variant: KernelVariant) -> WarmUpJob:
    kv, io = variant.kv.name.lower(), variant.io.name.lower()
    rounded = "" if variant.products is Products.EXACT else f", {variant.products.name} products"
    name = f"attention, {kv} cache, {io} queries, head_dim {variant.head_dim}{rounded.lower()}"
    return WarmUpJob(name, lambda: attention_kernel(variant), variant)


def _merge_nothing() -> None:
    merge_partials(np.zeros((1, 1), np.float32), np.zeros(1, np.float32))


MERGE_JOB = WarmUpJob("merge of partial results", _merge_nothing)


def run_jobs(jobs: Sequence[WarmUpJob], progress: Progress | None) -> tuple[WarmKernel, ...]:
    """One after the other: the compiler lets no two threads in at a time."""
    results = []
    for number, job in enumerate(jobs, start=1):
        if progress:
            progress(WarmUpStep(number, len(jobs), job.name, None))
        results.append(_run_job(job))
        if progress:
            progress(WarmUpStep(number, len(jobs), job.name, results[-1]))
    return tuple(results)


def _run_job(job: WarmUpJob) -> WarmKernel:
    compiled_before, lost_before = num_compiled(), num_lost()
    start = perf_counter()
    job.make_ready()
    seconds = perf_counter() - start
    return WarmKernel(
        job.name,
        job.variant,
        from_cache=num_compiled() == compiled_before,
        is_kept=num_lost() == lost_before,
        seconds=seconds,
    )
