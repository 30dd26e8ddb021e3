"""One run of the benchmark of two models, from arguments to table and picture."""

import argparse
import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

from models_bench import ModelsBench, Result
from models_goals import goals
from models_options import FULL, Models, Settings, quick
from models_plan import ModelsPlan, paths_of
from models_report import content, document, drawing

from omniserve.atomic_file import write_text
from omniserve.bench.colocate.facts import headline
from omniserve.bench.colocate.options import ColocateOptions
from omniserve.bench.colocate.plan import settle_plan
from omniserve.bench.colocate.prepare import Prepared, prepare
from omniserve.bench.colocate.session import NO_VLLM, say, stopped_by_signals

GOALS_MISSED = 1


def run(args: argparse.Namespace) -> int:
    """Returns the status of the process: whether all goals that were judged are met."""
    started_s = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    options, settings = told(args)
    prepared = prepare(options)
    plan = ModelsPlan(prepared.plan, settings)
    if options.vllm_python is not None and not plan.with_vllm:
        say(NO_VLLM.format(python=options.vllm_python))
    if settle_plan(plan.as_data(), args.out):
        say(f"{args.out} holds a part of this: it goes on from there")
    result = asyncio.run(measure(plan, prepared, args.out))
    facts = headline(prepared.plan, time.monotonic() - started_s, "benchmarks/models.py")
    text = document(facts, plan, result)
    print(text, end="")
    write_text(args.out / "models.md", text)
    write_text(args.out / "models.svg", drawing(result))
    told_all = json.dumps(content(facts, plan, result), indent=1, default=str)
    write_text(args.out / "models.json", told_all + "\n")
    return GOALS_MISSED if any(goal.is_met is False for goal in goals(result)) else 0


async def measure(plan: ModelsPlan, prepared: Prepared, directory: Path) -> Result:
    with stopped_by_signals():
        return await ModelsBench(plan, prepared, directory, say).run()


def told(args: argparse.Namespace) -> tuple[ColocateOptions, Settings]:
    """What the arguments ask for; makes models that are missing."""
    models = Models(args.preset, args.ls_arch, args.be_arch)
    paths = paths_of(models)
    options, settings = FULL, Settings(models)
    if args.quick:
        options, settings = quick(options, settings)
    given = {
        name: value
        for name, value in vars(args).items()
        if value is not None and name in ColocateOptions.__slots__ and name != "vllm_python"
    }
    options = replace(
        options,
        **given,
        model=paths.ls,
        be_model=paths.be,
        vllm_python=None if args.no_vllm else args.vllm_python,
    )
    return options, replace(
        settings,
        daemon_layouts=tuple(dict.fromkeys(args.daemon_layouts or settings.daemon_layouts)),
        vllm_layouts=tuple(dict.fromkeys(args.vllm_layouts or settings.vllm_layouts)),
    )
