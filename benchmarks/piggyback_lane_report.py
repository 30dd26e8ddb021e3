"""Markdown of what benchmarks/piggyback.py measured of the lanes alone, and of its base."""

from collections.abc import Sequence

from piggyback_bound import ENOUGH, Base, in_flight_limit
from piggyback_cases import Load
from piggyback_lanes import LaneCase, LaneOverhead
from piggyback_report import table
from piggyback_results import Series


def base_text(base: Base) -> str:
    """What bounds were computed from."""
    dense = base.dense.seconds_by_rows
    lines = [
        table(
            ["rows", *map(str, dense)],
            [["dense layers of a step, ms", *(f"{dense[rows] * 1e3:.2f}" for rows in dense)]],
        ),
        "",
        table(
            ["context", "host KV GB/s beside an idle device", "beside LS alone"],
            [
                [f"{context:,}", f"{idle / 1e9:.1f}", f"{beside / 1e9:.1f}"]
                for context, (idle, beside) in base.host_bytes_per_s.items()
            ],
        ),
        "",
        f"A step of LS alone takes {base.ls_step_s[0] * 1e3:.2f} ms beside an idle host and "
        f"{base.ls_step_s[1] * 1e3:.2f} ms ({base.slowdown:.2f} times) beside one that reads all "
        "the time: memory is shared.",
    ]
    return "\n".join(lines)


def scaling_table(base: Base, load: Load, cases: Sequence[LaneCase]) -> str:
    """Throughput by offloaded requests, and the limit that it met."""
    rows = [
        [
            f"{case.context:,}",
            case.label,
            f"{duty:.0%}",
            f"{series.num_offloaded:.0f}",
            f"{series.be_per_s:,.0f}",
            "{:,.0f}..{:,.0f}".format(*series.be_range),
            f"{series.step_s * 1e3:.1f}",
            f"{_width(base, series):.1f}",
            f"{series.hop_steps:.2f}",
            f"{series.kv_bytes_per_s / 1e9:.1f}",
            name_limit(base, load, case, duty, series),
        ]
        for case in cases
        for duty, series in case.series.items()
    ]
    header = ["context", "requests", "LS duty", "offloaded", "BE tok/s", "min..max", "step ms"]
    return table([*header, "rows a layer", "hop steps", "host GB/s", "limits"], rows)


def name_limit(base: Base, load: Load, case: LaneCase, duty: float, series: Series) -> str:
    """Every limit and the part of it that was reached, the nearest first."""
    speed = series.lane_tokens_per_s
    if not speed:
        return "nothing came out of the lanes"
    cap = case.piggybacking.max_lane_rows_beside_ls if duty else case.piggybacking.max_lane_rows
    token_bytes = base.kv_bytes_per_token * (case.context + load.be_output / 2)
    parts = {
        "host bandwidth": speed * token_bytes / base.host_bytes_per_s[case.context][1],
        f"{cap} lane rows": _width(base, series) / cap,
        "requests in flight": speed / in_flight_limit(base, series),
    }
    if not duty:
        parts["dense rows"] = speed / base.dense.most_rows_per_s(cap)
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(
        f"**{name} {part:.2f}**" if part >= ENOUGH else f"{name} {part:.2f}"
        for name, part in ranked
    )


def _width(base: Base, series: Series) -> float:
    """Lane rows that joined at a layer of a step, in the mean."""
    steps = sum(window.num_steps for window in series.windows)
    rows = sum(lanes.num_rows_joined for lanes in series.lanes)
    return rows / (base.num_layers * steps) if steps else 0.0


def overhead_table(base: Base, load: Load, overhead: LaneOverhead) -> str:
    """Milliseconds that lane rows add to a step, dense rows and everything else."""
    rows = []
    for case, alone in zip(overhead.cases, overhead.ls_alone, strict=True):
        series, alone_s = case.series[1.0], alone.step_s
        width = _width(base, series)
        dense_s = base.dense.of(load.ls_requests + width) - base.dense.of(load.ls_requests)
        memory_s = (base.slowdown - 1) * alone_s if width else 0.0
        added_s = series.step_s - alone_s
        rest_s = added_s - dense_s
        rows.append(
            [
                case.label,
                f"{width:.1f}",
                f"{alone_s * 1e3:.2f}",
                f"{series.step_s * 1e3:.2f}",
                f"{added_s * 1e3:.2f}",
                f"{dense_s * 1e3:.2f}",
                f"{rest_s * 1e3:.2f}",
                f"**{rest_s / series.step_s:.1%}**",
                f"{memory_s * 1e3:.2f}",
                _phases(series, alone),
            ]
        )
    header = ["lane rows allowed", "joined at a layer", "LS alone, ms", "step ms", "added"]
    header += ["dense rows", "everything else", "of the step", "of it shared memory, at most"]
    return table([*header, "added by phase, ms"], rows)


def _phases(series: Series, alone: Series) -> str:
    """Time of a step's phases beyond that of LS alone, where it is worth a word."""
    ours, theirs = _phase_ms(series), _phase_ms(alone)
    grown = {name: ours[name] - theirs.get(name, 0.0) for name in ours}
    return ", ".join(f"{name} {ms:.2f}" for name, ms in grown.items() if abs(ms) >= 0.05)


def _phase_ms(series: Series) -> dict[str, float]:
    steps = max(1, sum(window.num_steps for window in series.windows))
    names = dict.fromkeys(name for window in series.windows for name in window.timings_s)
    return {
        name: 1e3 * sum(window.timings_s.get(name, 0.0) for window in series.windows) / steps
        for name in names
    }


def binding_table(cases: Sequence[LaneCase]) -> str:
    """Binding points: hop delay and throughput."""
    rows = [
        [
            case.label,
            f"{duty:.0%}",
            f"{series.be_per_s:,.0f}",
            "{:,.0f}..{:,.0f}".format(*series.be_range),
            f"{series.hop_steps:.2f}",
            f"{series.hop_steps * series.step_s * 1e3:.1f}",
            f"{series.step_s * 1e3:.1f}",
            _tpot(series),
        ]
        for duty in cases[0].series
        for case in cases
        if (series := case.series[duty]) is not None
    ]
    header = ["binding points", "LS duty", "BE tok/s", "min..max", "hop steps", "hop ms", "step ms"]
    return table([*header, "LS TPOT p50 / p99 ms"], rows)


def frontier_table(cases: Sequence[LaneCase], cells: Sequence[str]) -> str:
    """Lane rows allowed beside latency-sensitive work; `cells` names the device KV of each."""
    rows = [
        [
            f"{case.context:,}",
            kv_name,
            case.label,
            f"{case.series[1.0].be_per_s:,.0f}",
            "{:,.0f}..{:,.0f}".format(*case.series[1.0].be_range),
            _tpot(case.series[1.0]),
        ]
        for case, kv_name in zip(cases, cells, strict=True)
    ]
    header = ["context", "device KV for", "lane rows beside LS", "BE tok/s", "min..max"]
    return table([*header, "LS TPOT p50 / p99 ms"], rows)


def _tpot(series: Series) -> str:
    middle, last = series.tpot_s(50), series.tpot_s(99)
    return "-" if middle is None or last is None else f"{middle * 1e3:.1f} / {last * 1e3:.1f}"
