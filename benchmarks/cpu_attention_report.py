"""Statistics and Markdown of benchmarks/cpu_attention.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from cpu_attention_case import AttentionCase


@dataclass(slots=True)
class Form:
    """What one competitor is measured with: the fastest of the forms that were tried."""

    name: str
    error: float
    tried: dict[str, float]
    """Median seconds of each form's trials."""


@dataclass(slots=True)
class CaseResult:
    """Seconds of every round; the lists of a competitor stay empty where there is none."""

    case: AttentionCase
    products: str
    error: float
    reads: list[float] = field(default_factory=list)
    """Bytes a second: each the mean of the reads before and after our step."""
    ours: list[float] = field(default_factory=list)
    sdpa: list[float] = field(default_factory=list)
    vllm: list[float] = field(default_factory=list)
    sdpa_form: Form | None = None
    vllm_form: Form | None = None
    other_cores: float = 0.0

    @property
    def fractions(self) -> list[float]:
        """Of the read probe's speed, round by round."""
        pairs = zip(self.ours, self.reads, strict=True)
        return [self.case.kv_bytes / seconds / read for seconds, read in pairs]

    def ratios(self, theirs: Sequence[float]) -> list[float]:
        """Their seconds over ours, round by round."""
        return [their / our for our, their in zip(self.ours, theirs, strict=True)]

    @property
    def gigabytes(self) -> float:
        return self.case.kv_bytes / median(self.ours) / 1e9

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case.as_json(),
            "products": self.products,
            "error": self.error,
            "read_bytes_per_s": self.reads,
            "seconds": self.ours,
            "sdpa_seconds": self.sdpa,
            "sdpa_tried": self.sdpa_form.tried if self.sdpa_form else {},
            "vllm_seconds": self.vllm,
            "vllm_tried": self.vllm_form.tried if self.vllm_form else {},
            "other_cores": self.other_cores,
        }


_COLUMNS = (
    "keys and values",
    "block",
    "threads",
    "heads a KV head",
    "head dim",
    "read GB/s",
    "KV GB/s",
    "of the read",
    "middle half",
    "error",
    "x SDPA",
    "middle half",
    "x vLLM",
    "middle half",
    "other load",
)


def speed_table(results: Sequence[CaseResult]) -> str:
    """Medians over the rounds; a ratio is the median of the rounds' own ratios."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    for result in results:
        case = result.case
        cells = [
            name_of(result),
            *map(str, (case.block_size, case.num_threads, case.group_size, case.head_dim)),
            f"{median(result.reads) / 1e9:.1f}",
            f"{result.gigabytes:.1f}",
            *_spread(result.fractions),
            f"{result.error:.1e}",
            *_spread(result.ratios(result.sdpa) if result.sdpa else []),
            *_spread(result.ratios(result.vllm) if result.vllm else []),
            f"{result.other_cores:.2f} cores",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def name_of(result: CaseResult) -> str:
    products = "" if result.products == "exact" else f", {result.products} products"
    return result.case.kv + products


def _spread(ratios: Sequence[float]) -> list[str]:
    if not ratios:
        return ["-", "-"]
    if len(ratios) == 1:
        return [f"**{ratios[0]:.2f}**", "-"]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return [f"**{median(ratios):.2f}**", f"{low:.2f}..{high:.2f}"]


def forms_table(results: Sequence[CaseResult]) -> str:
    """What the competitors' best forms are, and how the other ones did."""
    lines = [
        "| keys and values | block | threads | heads a KV head | head dim "
        "| SDPA forms, GB/s of the case's KV | error | vLLM variants, the same | error |",
        "|" + "---|" * 9,
    ]
    for result in results:
        case = result.case
        if result.products != "exact" or not (result.sdpa_form or result.vllm_form):
            continue
        cells = [case.kv]
        cells += map(str, (case.block_size, case.num_threads, case.group_size, case.head_dim))
        for form in (result.sdpa_form, result.vllm_form):
            cells += _tried(form, case.kv_bytes)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _tried(form: Form | None, kv_bytes: int) -> list[str]:
    if form is None:
        return ["-", "-"]
    forms = []
    for name, seconds in form.tried.items():
        text = f"{name} {kv_bytes / seconds / 1e9:.1f}"
        forms.append(f"**{text}**" if name == form.name else text)
    return [", ".join(forms), f"{form.error:.1e}"]


def document(
    facts: Mapping[str, str], results: Sequence[CaseResult], sections: Mapping[str, str]
) -> str:
    """`sections`: further tables under their titles."""
    lines = ["# CPU attention benchmark", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines.append("")
    if results:
        lines += [speed_table(results), ""]
    for title, text in sections.items():
        lines += [f"## {title}", "", text, ""]
    return "\n".join(lines)
