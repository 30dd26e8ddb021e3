"""The Grafana dashboard's queries, and what a scrape has that they could ask for."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

DOCS = Path(__file__).parents[1] / "docs" / "grafana"
DASHBOARD = DOCS / "omniserve.json"
ALERTS = DOCS / "alerts.yaml"

_VARIABLES = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}
_SELECTOR = re.compile(r"\b((?:omniserve|process|up)\w*)\s*(?:\{([^}]*)\})?")


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and where it stands."""

    place: str
    text: str


def load_dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those in closed rows, too; rows themselves are not among them."""
    for panel in dashboard["panels"]:
        inner = panel.get("panels", [])
        yield from inner if panel["type"] == "row" else [panel]


def queries(dashboard: dict[str, Any]) -> list[Query]:
    return [
        Query(f"{panel['title']} / {target['refId']}", target["expr"])
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def as_promql(text: str) -> str:
    """With the variables of Grafana replaced by values that they may have."""
    for name, value in _VARIABLES.items():
        text = text.replace(name, value)
    return re.sub(r"\$\{?[a-z]+\}?", ".*", text)


def selectors(promql: str) -> list[tuple[str, frozenset[str]]]:
    """Metrics that an expression asks for, each with the labels that its selector names."""
    return [
        (name, frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)))
        for name, labels in _SELECTOR.findall(promql)
    ]


def known_series(exposition: str) -> dict[str, frozenset[str]]:
    """Labels by the name of the series, as a scraper sees them; `up` is the scraper's own."""
    found: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return {name: frozenset(labels) for name, labels in found.items()}
