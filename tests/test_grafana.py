"""The dashboard and the alerts that are shipped ask for nothing that is not there."""

import re
from pathlib import Path

import pytest
import yaml
from dashboard import (
    ALERTS,
    as_promql,
    known_series,
    load_dashboard,
    panels,
    queries,
    selectors,
)
from everything_measured import full_exposition


@pytest.fixture(scope="module")
def series(tiny_checkpoint: Path) -> dict[str, frozenset[str]]:
    return known_series(full_exposition(tiny_checkpoint))


def test_every_query_names_series_and_labels_that_exist(
    series: dict[str, frozenset[str]],
) -> None:
    found = queries(load_dashboard())
    assert len(found) > 30
    for query in found:
        asked = selectors(as_promql(query.text))
        assert asked, f"{query.place}: names no metric"
        for name, labels in asked:
            assert name in series, f"{query.place}: there is no {name}"
            unknown = labels - series[name] - {"instance", "job", "le"}
            assert not unknown, f"{query.place}: {name} has no label {unknown}"


def test_what_a_query_groups_by_is_a_label_of_what_it_asks_for(
    series: dict[str, frozenset[str]],
) -> None:
    for query in queries(load_dashboard()):
        known = {"instance", "job"}.union(
            *(series[name] for name, _ in selectors(as_promql(query.text)))
        )
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query.text):
            assert set(re.split(r",\s*", group)) <= known, query.place


def test_legends_name_labels_that_a_query_keeps() -> None:
    for panel in panels(load_dashboard()):
        for target in panel["targets"]:
            groups = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            used = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            if groups:
                kept = set(re.split(r",\s*", groups[0]))
                assert used <= kept, panel["title"]


def test_every_metric_of_the_daemon_is_on_the_dashboard(
    series: dict[str, frozenset[str]],
) -> None:
    shown = {name for query in queries(load_dashboard()) for name, _ in selectors(query.text)}
    parts = ("_sum", "_count", "_bucket")
    ours = {name for name in series if name.startswith("omniserve_")}
    missing = {name for name in ours - shown if not name.endswith(parts)}
    assert not missing


def test_alerts_name_series_and_labels_that_exist(series: dict[str, frozenset[str]]) -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names))
    for rule in group["rules"]:
        asked = selectors(rule["expr"])
        assert asked
        for name, labels in asked:
            assert labels <= series[name] | {"instance", "job"}, rule["alert"]
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        known = {"instance", "job"}.union(*(series[name] for name, _ in asked))
        assert used <= known, rule["alert"]


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = load_dashboard()
    assert dashboard["uid"] and dashboard["title"] == "OmniServe"
    # An id would name a dashboard of somebody else's Grafana.
    assert dashboard["id"] is None
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    text = str(queries(dashboard))
    assert set(re.findall(r"\$([a-z]+)", text)) <= variables
    for panel in panels(dashboard):
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in load_dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
