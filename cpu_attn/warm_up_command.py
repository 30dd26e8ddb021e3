"""`python -m cpu_attn.warm_up_command`: fills the folder of compiled kernels and prints a table."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module

from cpu_attn.cache_folder import cache_folder
from cpu_attn.chunk_softmax import chunk_softmax_kernel
from cpu_attn.element import QUERY_ELEMENTS, Element
from cpu_attn.isa import active
from cpu_attn.kernel_variant import KernelVariant, Products
from cpu_attn.row_kernels import add_norm_kernel, gated_silu_kernel, rotate_kernel
from cpu_attn.skinny_linear import can_run, skinny_linear_kernel
from cpu_attn.warm_up import (
    MERGE_JOB,
    WarmKernel,
    WarmUpJob,
    WarmUpStep,
    attention_jobs,
    run_jobs,
)

EXIT_OK, EXIT_NOT_KEPT, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
_ROTATED_MULTIPLE = 64
"""Of head_dim, for `rotate_kernel`."""


def main() -> int:
    arguments = _parser().parse_args()
    try:
        variants = [variant_of(text) for text in arguments.variants]
        models = [_model_of(text) for text in arguments.model]
    except ValueError as error:
        sys.stderr.write(f"omniserve: {error}\n")
        return EXIT_USAGE
    jobs: list[WarmUpJob] = []
    for element, head_dim in dict.fromkeys(models):
        try:
            variants.append(KernelVariant(element, element, head_dim))
        except ValueError as error:
            sys.stderr.write(f"omniserve: {error}; other attention is used\n")
        jobs += _layer_jobs(element, head_dim)
    if models:
        jobs += _host_jobs()
    try:
        run = _run_as_json if arguments.json else _run
        return run([*attention_jobs(variants), MERGE_JOB, *jobs])
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def variant_of(text: str) -> KernelVariant:
    """KV:IO:HEAD_DIM or KV:IO:HEAD_DIM:bfloat16. Raises ValueError."""
    parts = text.split(":")
    if len(parts) not in (3, 4):
        raise ValueError(
            f"{text!r}: CACHE:QUERIES:HEAD_DIM is needed, or CACHE:QUERIES:HEAD_DIM:bfloat16 for "
            "products in bfloat16"
        )
    kv = _element_of(text, "CACHE", parts[0], tuple(Element))
    io = _element_of(text, "QUERIES", parts[1], QUERY_ELEMENTS)
    head_dim = _number_of(text, parts[2])
    products = Products.EXACT
    if len(parts) == 4:
        if parts[3] != "bfloat16":
            raise ValueError(f"{text!r}: products {parts[3]!r}: bfloat16 or nothing is needed")
        products = Products.BFLOAT16
    try:
        return KernelVariant(kv, io, head_dim, products)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _model_of(text: str) -> tuple[Element, int]:
    name, _, digits = text.partition(":")
    return _element_of(text, "ELEMENT", name, QUERY_ELEMENTS), _number_of(text, digits)


def _element_of(text: str, part: str, name: str, allowed: tuple[Element, ...]) -> Element:
    names = [element.name.lower() for element in allowed]
    if name not in names:
        raise ValueError(f"{text!r}: {part} {name!r} is none of {', '.join(names)}")
    return Element[name.upper()]


def _number_of(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{text!r}: head_dim {digits!r} is not a whole number")
    return int(digits)


def _layer_jobs(element: Element, head_dim: int) -> Iterable[WarmUpJob]:
    """What a layer of a model on a CPU device needs beside attention."""
    name = element.name.lower()
    yield WarmUpJob(f"softmax of prefill, {name}", partial(chunk_softmax_kernel, element))
    yield WarmUpJob(f"RMSNorm, {name}", partial(add_norm_kernel, element, False))
    yield WarmUpJob(f"sum and RMSNorm, {name}", partial(add_norm_kernel, element, True))
    yield WarmUpJob(f"gated SiLU, {name}", partial(gated_silu_kernel, element))
    if element is Element.BFLOAT16 and can_run():
        yield WarmUpJob(f"linear layers of few rows, {name}", skinny_linear_kernel)
    if head_dim % _ROTATED_MULTIPLE == 0:
        text = f"{name}, head_dim {head_dim}"
        yield WarmUpJob(f"RoPE, {text}", partial(rotate_kernel, element, head_dim, False))
        yield WarmUpJob(
            f"head norm and RoPE, {text}", partial(rotate_kernel, element, head_dim, True)
        )


def _host_jobs() -> Iterable[WarmUpJob]:
    """Loops that belong to no model; they are compiled where they are imported."""
    yield WarmUpJob("loops of the host process", partial(import_module, "cpu_attn.host.process"))
    yield WarmUpJob("copies of KV blocks", partial(import_module, "cpu_attn.block_copy"))


def _run(jobs: list[WarmUpJob]) -> int:
    folder = cache_folder()
    sys.stdout.write(f"kernels for {active().name} in {folder or 'no folder'}\n")
    width = max(len(job.name) for job in jobs)
    return _status(run_jobs(jobs, partial(_print_step, width)))


def _run_as_json(jobs: list[WarmUpJob]) -> int:
    results = run_jobs(jobs, None)
    kernels = [
        {
            "name": each.name,
            "from_cache": each.from_cache,
            "is_kept": each.is_kept,
            "seconds": each.seconds,
        }
        for each in results
    ]
    folder = cache_folder()
    found = {"isa": active().name, "folder": folder and str(folder), "kernels": kernels}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return _status(results)


def _status(results: Sequence[WarmKernel]) -> int:
    lost = sum(not result.is_kept for result in results)
    if lost:
        sys.stderr.write(f"omniserve: {lost} of {len(results)} kernels could not be saved\n")
        return EXIT_NOT_KEPT
    return EXIT_OK


def _print_step(width: int, step: WarmUpStep) -> None:
    """A line begins before the kernel is made and ends after it."""
    if step.done is None:
        sys.stdout.write(f"{step.number:>3}/{step.total}  {step.name:{width}}  ")
    else:
        how = "from the cache" if step.done.from_cache else "compiled"
        sys.stdout.write(f"{how:14}  {step.done.seconds:6.2f} s\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cpu_attn.warm_up_command", description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="CACHE:QUERIES:HEAD_DIM[:bfloat16]")
    parser.add_argument("--model", action="append", default=[], metavar="ELEMENT:HEAD_DIM")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
