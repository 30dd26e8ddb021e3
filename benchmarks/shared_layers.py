"""What it brings that rows of several models share batches in the layers that the models share.

A base and its fine-tunes, of random weights, are served by one engine in this process. Each model
has the same best-effort requests; tokens a second are those of all models, from the first request
until the last one has ended. Rounds with and without joint layers alternate, each pair in the other
order than the one before, and the ratio is taken within pairs. Both give the same tokens, which is
checked where the weights are float32.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from machine import machine, say

from omniserve.engine.core import Engine
from omniserve.requests import EngineRequest, SamplingParams
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.finetune import write_finetune

Tokens = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Round:
    """One load, from its first request until the last one has ended."""

    tokens_per_s: float
    """That were generated, of all models."""
    rows_per_layer: float
    """Rows of all models in a layer that several of them ran together, on average; 0 if none."""


class Family:
    """An engine with a base and its fine-tunes, and the load that each of them gets."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        base = write_checkpoint(
            directory / "base", arch="llama", preset=options.preset, dtype=options.dtype
        )
        paths = [base] + [
            write_finetune(
                base, directory / f"finetune-{seed}", layers_from=options.layers_from, seed=seed
            )
            for seed in range(1, options.models)
        ]
        models = tuple(
            ModelSettings(
                path.name,
                str(path),
                dtype=options.dtype,
                device_kv_bytes=options.kv_mib << 20,
                max_model_len=options.prompt + options.output + 16,
                prefix_caching=False,
            )
            for path in paths
        )
        device = DeviceSettings(kind="cpu", threads=options.threads)
        self._engine = Engine(EngineSettings(device, models), poll_arrivals=lambda: None)
        self._engine.warm_up()
        self._names = [model.name for model in models]

    def close(self) -> None:
        self._engine.close()

    def run(self, *, is_joint: bool) -> tuple[Round, Tokens]:
        """Every round has the same requests."""
        self._engine._stepping.riding.is_on = is_joint
        layers_before, rows_before = self._joint()
        tokens: Tokens = {}
        for request in self._requests():
            tokens[request.request_id] = []
            self._engine.add(request)
        begun_s = time.perf_counter()
        while self._engine.has_unfinished:
            for output in self._engine.step():
                tokens[output.request_id] += output.token_ids
        seconds = time.perf_counter() - begun_s
        layers, rows = self._joint()
        num_tokens = sum(map(len, tokens.values()))
        # Each joint layer counts for every model that was in it; with all of them in it, once each.
        batches = (layers - layers_before) / len(self._names)
        num_rows = (rows - rows_before) / batches if batches else 0.0
        return Round(num_tokens / seconds, num_rows), tokens

    def _joint(self) -> tuple[int, int]:
        found = [each.joint_layers for each in self._engine.stats() if each.joint_layers]
        return sum(each.num_layers for each in found), sum(each.num_rows for each in found)

    def _requests(self) -> list[EngineRequest]:
        options, rng = self._options, np.random.default_rng(0)
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=options.output)
        return [
            EngineRequest(
                f"{name}-{index}",
                name,
                tuple(rng.integers(3, 500, options.prompt).tolist()),
                sampling,
                "best_effort",
                "batch",
            )
            for name in self._names
            for index in range(options.requests)
        ]


def measure(family: Family, num_pairs: int, *, is_exact: bool) -> list[tuple[Round, Round]]:
    """Pairs of rounds, the one with joint layers first; raises where tokens differ."""
    family.run(is_joint=True)
    pairs = []
    for number in range(num_pairs):
        order = (True, False) if number % 2 else (False, True)
        found = {is_joint: family.run(is_joint=is_joint) for is_joint in order}
        (joint, joint_tokens), (apart, apart_tokens) = found[True], found[False]
        if is_exact and joint_tokens != apart_tokens:
            raise RuntimeError("tokens differ with joint layers")
        pairs.append((joint, apart))
        say(
            f"pair {number + 1}: {joint.tokens_per_s:.0f} against {apart.tokens_per_s:.0f} tokens/s"
        )
    return pairs


def report(pairs: Sequence[tuple[Round, Round]]) -> str:
    """A table of medians, and the ratio with its spread over the pairs."""
    ratios = [joint.tokens_per_s / apart.tokens_per_s for joint, apart in pairs]
    lines = ["| layers | tokens/s | rows in a joint layer |", "|---|---|---|"]
    for title, rounds in (("joint", [a for a, _ in pairs]), ("apart", [b for _, b in pairs])):
        tokens_per_s = statistics.median(each.tokens_per_s for each in rounds)
        rows = statistics.median(each.rows_per_layer for each in rounds)
        lines.append(f"| {title} | {tokens_per_s:.0f} | {rows:.1f} |")
    median = statistics.median(ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return "\n".join([*lines, "", f"ratio: {median:.2f} ({spread}, {len(ratios)} pairs)"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="100m", choices=["tiny", "small", "100m"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--models", type=int, default=3, help="the base among them")
    parser.add_argument("--layers-from", type=float, default=0.75, help="part that is shared")
    parser.add_argument("--requests", type=int, default=4, help="of each model at a time")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv-mib", type=int, default=256, help="of each model")
    parser.add_argument("--json", type=Path, help="writes every round there")
    return parser.parse_args()


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as directory:
        family = Family(options, Path(directory))
        try:
            pairs = measure(family, options.pairs, is_exact=options.dtype == "float32")
        finally:
            family.close()
    print(report(pairs))
    if options.json is not None:
        rounds = [{"joint": asdict(a), "apart": asdict(b)} for a, b in pairs]
        result = {"machine": machine(), "options": vars(options) | {"json": None}, "pairs": rounds}
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
