"""A server's own latencies, read from its metrics in Prometheus' text format."""

import re
from dataclasses import replace

from omniserve.bench.load.target import ClockKey, ClockReading, Latencies

_KINDS = {
    "omniserve_ttft_seconds": "ttft",
    "omniserve_tpot_seconds": "tpot",
    "omniserve_e2e_seconds": "e2e",
    "vllm:time_to_first_token_seconds": "ttft",
    "vllm:request_time_per_output_token_seconds": "tpot",
    "vllm:e2e_request_latency_seconds": "e2e",
}
_LINE = re.compile(rf"({'|'.join(_KINDS)})_(sum|count)\{{(.*)\}} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_clock(text: str) -> dict[ClockKey, ClockReading]:
    """Sums and counts of OmniServe's and vLLM's histograms; several engines are added up."""
    clock: dict[ClockKey, ClockReading] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, part, labels_text, value = match.groups()
        labels: dict[str, str] = dict(_LABEL.findall(labels_text))
        key = ClockKey(labels.get("model") or labels.get("model_name", ""), labels.get("tier", ""))
        reading = clock.get(key, ClockReading())
        latencies: Latencies = getattr(reading, _KINDS[name])
        if part == "sum":
            latencies = replace(latencies, total_s=latencies.total_s + float(value))
        else:
            latencies = replace(latencies, num=latencies.num + float(value))
        clock[key] = replace(reading, **{_KINDS[name]: latencies})
    return clock
