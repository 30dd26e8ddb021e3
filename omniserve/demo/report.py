"""The result as one HTML page that needs nothing else: inline style, inline SVG, no scripts."""

from collections.abc import Sequence
from html import escape

from omniserve.charts.page import (
    COLOURS,
    Card,
    Verdict,
    cards,
    figures,
    header,
    legend,
    page,
    paragraphs,
    section,
    table,
)
from omniserve.charts.text import NOTHING, format_ms, format_share
from omniserve.demo.figures import run_figures
from omniserve.demo.load import CHAT_TOKENS, DOCUMENT_TOKENS
from omniserve.demo.measure import TierSummary
from omniserve.demo.next_steps import Step
from omniserve.demo.result import DemoResult
from omniserve.demo.text import goal_text

MAX_ERRORS = 20
_VERDICTS: dict[bool | None, Verdict] = {True: "good", False: "bad", None: ""}

HEADINGS = (
    *("tier", "class", "requests", "done", "refused", "errors", "cut off", "TTFT p50 ms"),
    *("TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms", "within objectives", "tokens/s"),
)


def render_report(result: DemoResult, steps_on: Sequence[Step]) -> str:
    """The whole page, well-formed XML."""
    body = [
        _head(result),
        _cards(result),
        section("Result", table(HEADINGS, [_row(summary) for summary in result.summaries])),
        _errors(result),
        section("Over the run", _legend(result) + figures(run_figures(result))),
        _setting(result),
        section("Go on", "".join(_step(step) for step in steps_on)),
    ]
    return page("OmniServe demo", "\n".join(body))


def _head(result: DemoResult) -> str:
    served = result.served
    facts = [
        f"model {served.model} ({served.architecture}, {served.num_parameters / 1e6:.1f} M)",
        f"device {served.device}",
        f"{result.record.window_s:g} s of traffic",
        f"{result.finished_at:%Y-%m-%d %H:%M}",
        f"OmniServe {served.version}",
    ]
    return header("OmniServe demo", facts)


def _cards(result: DemoResult) -> str:
    fast, slow = result.summaries
    name = fast.tier.name
    return cards(
        [
            Card(
                f"{name} within objectives",
                format_share(fast.share_within),
                goal_text(fast.tier),
                _VERDICTS[fast.is_goal_met],
            ),
            Card(
                f"{name} TTFT p99",
                f"{format_ms(fast.ttft_p99_ms)} ms",
                _objective(fast.tier.ttft_ms),
            ),
            Card(
                f"{name} TPOT p99",
                f"{format_ms(fast.tpot_p99_ms)} ms",
                _objective(fast.tier.tpot_ms),
            ),
            Card(f"{slow.tier.name} beside it", f"{slow.tokens_per_s:.0f} tokens/s", "best effort"),
        ]
    )


def _objective(value_ms: float | None) -> str:
    return NOTHING if value_ms is None else f"objective {value_ms:g} ms"


def _row(summary: TierSummary) -> list[str]:
    return [
        summary.tier.name,
        summary.tier.service_class.replace("_", "-"),
        str(summary.num_sent),
        str(summary.num_done),
        str(summary.num_refused),
        str(summary.num_failed),
        str(summary.num_cut_off),
        format_ms(summary.ttft_p50_ms),
        format_ms(summary.ttft_p99_ms),
        format_ms(summary.tpot_p50_ms),
        format_ms(summary.tpot_p99_ms),
        format_share(summary.share_within),
        f"{summary.tokens_per_s:.1f}",
    ]


def _errors(result: DemoResult) -> str:
    errors = result.errors()
    if not errors:
        return ""
    rows = [[str(count), text] for text, count in list(errors.items())[:MAX_ERRORS]]
    return section(f"Failed requests: {result.num_failed}", table(("times", "error"), rows))


def _legend(result: DemoResult) -> str:
    tiers = [summary.tier for summary in result.summaries]
    return legend([(tier.name, COLOURS[tier.service_class]) for tier in tiers])


def _setting(result: DemoResult) -> str:
    options, record = result.options, result.record
    started = (
        "an already running daemon"
        if result.ready_after_s is None
        else f"a daemon of its own, ready after {result.ready_after_s:.1f} s"
    )
    interactive, batch = result.served.interactive.name, result.served.batch.name
    lines = [
        f"{interactive}: Poisson arrivals, {options.ls_rate:g} per second, short chats with "
        f"{_range(CHAT_TOKENS)} output tokens, streamed over gRPC Generate.",
        f"{batch}: {options.be_concurrency} unfinished requests at any time, "
        f"{_range(DOCUMENT_TOKENS)} output tokens, streamed over OpenAI HTTP /v1/completions.",
        f"No new requests after {record.window_s:g} s. Requests cut off then: "
        f"{result.num_cut_off} (best-effort ones that had not begun, and what did not end soon).",
        "Times are the client's: TTFT from just before sending to the first token, TPOT from "
        "there to the last token, divided by the tokens after the first. tokens/s counts what "
        "came before the last new request.",
        f"The client, the daemon ({started}) and its engine shared {result.num_cores} cores. "
        f"Seed {options.seed}.",
    ]
    return section("How it was measured", paragraphs(lines))


def _range(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]} to {bounds[1]}"


def _step(step: Step) -> str:
    return f"<h3>{escape(step.title)}</h3><pre>{escape(step.code)}</pre>"
