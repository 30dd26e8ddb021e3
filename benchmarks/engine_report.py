"""Statistics and Markdown of benchmarks/engine.py."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, median, quantiles
from typing import Any

from engine_cases import Case


@dataclass(slots=True)
class CaseResult:
    """Tokens per second of every round; `theirs` stays empty without a peer."""

    vocab_size: int
    case: Case
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    num_steps: int = 0
    seconds: float = 0.0
    cores: dict[str, list[float]] = field(default_factory=dict)
    contexts: list[tuple[float, float]] = field(default_factory=list)
    """Mean context of the batch before and after every window of either engine."""

    @property
    def ratios(self) -> list[float]:
        return [our / their for our, their in zip(self.ours, self.theirs, strict=False)]

    def note_cores(self, used: Mapping[str, float]) -> None:
        for name, value in used.items():
            self.cores.setdefault(name, []).append(value)

    def note_answer(self, answer: Mapping[str, Any], *, is_ours: bool) -> None:
        """Notes one measurement as a worker answered it."""
        if "context" in answer:
            self.contexts.append(tuple(answer["context"]))
        speed = answer["tokens"] / answer["seconds"]
        if not is_ours:
            self.theirs.append(speed)
            return
        self.ours.append(speed)
        self.num_steps += answer["steps"]
        self.seconds += answer["seconds"]
        for phase, seconds in answer["timings"].items():
            self.timings[phase] = self.timings.get(phase, 0.0) + seconds

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratios": self.ratios}


def comparison_table(results: Sequence[CaseResult]) -> str:
    """Medians over the rounds; the ratio is the median of the rounds' own ratios."""
    lines = [
        "| vocabulary | case | OmniServe tok/s | vLLM-CPU tok/s | ratio | min..max | middle half "
        "| other load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [f"{result.vocab_size:,}", str(result.case), f"{median(result.ours):,.0f}"]
        cells += _peer_cells(result)
        cells.append(f"{mean(result.cores['others']):.2f} cores")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _peer_cells(result: CaseResult) -> list[str]:
    ratios = result.ratios
    if not ratios:
        return ["-"] * 4
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [
        f"{median(result.theirs):,.0f}",
        f"**{median(ratios):.2f}**",
        f"{min(ratios):.2f}..{max(ratios):.2f}",
        f"{low:.2f}..{high:.2f}",
    ]


def context_note(results: Sequence[CaseResult]) -> str:
    """Which contexts the decode cases really had; empty where there are none."""
    ranges = [
        f"{result.vocab_size:,} / {result.case}: {_context_range(result)}"
        for result in results
        if result.contexts
    ]
    if not ranges:
        return ""
    note = (
        "A decode case is named by its prompts. Each engine prefills it once; then its context "
        "grows, first as early requests decode while late ones prefill, then by one window that "
        "does not count and by one in every round. Tokens of a request, the batch's mean, from "
        "the first measured window to the last:"
    )
    return "\n".join([note, "", *(f"- {text}" for text in ranges)])


def _context_range(result: CaseResult) -> str:
    first = min(before for before, _ in result.contexts)
    last = max(after for _, after in result.contexts)
    return f"{first:,.0f}..{last:,.0f}"


def profile_table(results: Sequence[CaseResult]) -> str:
    """Milliseconds per step by phase of our engine, summed over all rounds."""
    phases = list(dict.fromkeys(name for result in results for name in result.timings))
    header = [
        "vocabulary",
        "case",
        "steps",
        "ms per step",
        *phases,
        "outside phases",
        "beside layers",
    ]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for result in results:
        per_step = 1e3 / result.num_steps
        known = sum(result.timings.values())
        beside = (
            1
            - (result.timings.get("layers", 0.0) + result.timings.get("logits", 0.0))
            / result.seconds
        )
        cells = [f"{result.vocab_size:,}", str(result.case), str(result.num_steps)]
        cells.append(f"{result.seconds * per_step:.2f}")
        cells += [f"{result.timings.get(name, 0.0) * per_step:.3f}" for name in phases]
        cells += [f"{(result.seconds - known) * per_step:.3f}", f"{beside:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def document(facts: Mapping[str, str], results: Sequence[CaseResult], profile: bool) -> str:
    lines = ["# Engine benchmark", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", comparison_table(results), ""]
    note = context_note(results)
    if note:
        lines += [note, ""]
    if profile:
        lines += [
            "Milliseconds per step of OmniServe's engine, by phase:",
            "",
            profile_table(results),
            "",
        ]
    return "\n".join(lines)
