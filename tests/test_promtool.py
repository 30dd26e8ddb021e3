"""promtool on what the daemon exposes, and on the queries and alerts that are shipped."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from daemon_fixture import RunningDaemon
from dashboard import ALERTS, as_promql, load_dashboard, queries
from everything_measured import full_exposition
from promtool import needs_promtool, promtool

pytestmark = needs_promtool


def test_metrics_pass_its_lint(tiny_checkpoint: Path) -> None:
    assert promtool("check", "metrics", stdin=full_exposition(tiny_checkpoint).encode()) == ""


def test_metrics_of_a_daemon_pass_its_lint(daemon: RunningDaemon) -> None:
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 2}
    assert httpx.post(f"{daemon.http_url}/v1/completions", json=body, timeout=60).is_success
    text = httpx.get(f"{daemon.http_url}/metrics", timeout=60).content
    assert b'omniserve_requests_total{model="demo",outcome="ok"' in text
    assert promtool("check", "metrics", stdin=text) == ""


def test_it_would_find_a_name_that_is_wrong() -> None:
    with pytest.raises(AssertionError, match="counter metrics should have"):
        promtool("check", "metrics", stdin=b"# HELP a_b Text.\n# TYPE a_b counter\na_b 1\n")


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{place}", "expr": as_promql(query.text)}
        for place, query in enumerate(queries(load_dashboard()))
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", path)


def test_alerts_are_valid_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS)


def series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


FIRING: list[tuple[str, list[dict[str, str]], str, dict[str, str]]] = [
    ("OmniServeDown", [series('up{job="omniserve"}', "1 0x30")], "critical", {"job": "omniserve"}),
    (
        "OmniServeNotAccepting",
        [series('omniserve_accepting_requests{instance="a"}', "0x20")],
        "critical",
        {"instance": "a"},
    ),
    (
        "OmniServeEngineRestarts",
        [series('omniserve_engine_restarts_total{instance="a"}', "0+1x20")],
        "warning",
        {"instance": "a"},
    ),
    (
        "OmniServeObjectivesMissed",
        [series('omniserve_slo_attainment{tier="chat",objective="both"}', "0.5x20")],
        "warning",
        {"tier": "chat", "objective": "both"},
    ),
    (
        "OmniServeOverloaded",
        [
            series('omniserve_requests_total{model="m",tier="t",outcome="ok"}', "0+8x30"),
            series('omniserve_requests_total{model="m",tier="t",outcome="refused"}', "0+2x30"),
        ],
        "warning",
        {"model": "m", "tier": "t"},
    ),
    (
        "OmniServeDeviceMemoryFull",
        [
            series('omniserve_kv_used_bytes{model="m",pool="device"}', "99x30"),
            # Of a budget that models share it may have more, and does not get it.
            series('omniserve_kv_total_bytes{model="m",pool="device"}', "400x30"),
            series('omniserve_kv_granted_bytes{model="m",pool="device"}', "100x30"),
            series('omniserve_waiting_requests{model="m",tier="t"}', "1x30"),
        ],
        "info",
        {"model": "m", "pool": "device"},
    ),
    (
        "OmniServeReloadFailed",
        [series("omniserve_config_last_reload_successful", "1 0x20")],
        "warning",
        {},
    ),
]


@pytest.mark.parametrize(("alert", "inputs", "severity", "labels"), FIRING)
def test_an_alert_fires_when_it_should(
    tmp_path: Path,
    alert: str,
    inputs: list[dict[str, str]],
    severity: str,
    labels: dict[str, str],
) -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    # What it says is checked elsewhere; here, whether it says it.
    rules = [
        {key: value for key, value in rule.items() if key != "annotations"}
        for rule in group["rules"]
    ]
    (tmp_path / "alerts.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "omniserve", "rules": rules}]})
    )
    expected = {"exp_labels": {"severity": severity} | labels}

    def at(minute: str, alerts: list[dict[str, Any]]) -> dict[str, Any]:
        return {"eval_time": minute, "alertname": alert, "exp_alerts": alerts}

    case = {
        "interval": "1m",
        "input_series": inputs,
        "alert_rule_test": [at("0m", []), at("20m", [expected])],
    }
    path = tmp_path / "case.yaml"
    path.write_text(
        yaml.safe_dump(
            {"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": [case]}
        )
    )
    assert "SUCCESS" in promtool("test", "rules", path)
