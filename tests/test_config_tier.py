"""Rules of tiers: what a file may say of them, and what the engine is told."""

from pathlib import Path

import pytest
import yaml

from omniserve.config import Config, load_config
from omniserve.config_tier import TierConfig
from omniserve.errors import ConfigError, InvalidRequest, ReloadRefused
from omniserve.requests import TierRules
from omniserve.tier_table import TierTable

MODELS = "models: [{name: demo, path: models/demo}]\n"
CHAT = "name: chat, class: latency_sensitive, ttft_ms: 500, tpot_ms: 50"
BATCH = "{name: batch, class: best_effort, max_waiting: 7}"
RULED = f"""\
{MODELS}tiers:
  - {{{CHAT}, admission: false, fallback: batch, max_waiting: 5, demote_after_tokens: 90}}
  - {BATCH}
"""


def load(directory: Path, text: str) -> Config:
    path = directory / "omniserve.yaml"
    path.write_text(text)
    return load_config(path)


def table_of(config: Config) -> TierTable:
    return TierTable(config.tiers, config.models)


def test_rules_reach_the_engine(tmp_path: Path) -> None:
    config = load(tmp_path, RULED)
    table = table_of(config)
    chat, batch = (table.settings(tier) for tier in config.tiers)
    assert chat.rules == TierRules(
        admission=False,
        fallback="batch",
        max_waiting=5,
        demote_after_tokens=90,
        fallback_max_waiting=7,
    )
    assert chat.objectives is not None
    assert (chat.objectives.ttft_s, chat.objectives.tpot_s) == (0.5, 0.05)
    assert (batch.rules, batch.objectives) == (TierRules(max_waiting=7), None)


def test_rules_are_unset_by_default(tmp_path: Path) -> None:
    config = load(tmp_path, f"{MODELS}tiers: [{{{CHAT}}}]")
    assert table_of(config).settings(config.tiers[0]).rules == TierRules()


def test_what_is_shown_means_the_same_when_read_again(tmp_path: Path) -> None:
    config = load(tmp_path, RULED)
    shown = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True))
    assert load(tmp_path, shown) == config


@pytest.mark.parametrize(
    ("tiers", "problem"),
    [
        (
            f"[{{{CHAT}, fallback: bulk}}, {BATCH}]",
            "tiers[0].fallback = 'bulk': must name a best_effort tier: batch",
        ),
        (
            f"[{{{CHAT}, fallback: chat}}, {BATCH}]",
            "tiers[0].fallback = 'chat': must name a best_effort tier: batch",
        ),
        (
            f"[{{{CHAT}, fallback: chat}}]",
            "tiers[0].fallback = 'chat': must name a best_effort tier: there is none",
        ),
        (
            f"[{BATCH}, {{name: bulk, class: best_effort, fallback: batch}}]",
            "tiers[1].fallback = 'batch': is not allowed for a best_effort tier",
        ),
        (
            "[{name: bulk, class: best_effort, admission: false}]",
            "tiers[0].admission = false: is not allowed for a best_effort tier",
        ),
        (
            "[{name: bulk, class: best_effort, demote_after_tokens: 5}]",
            "tiers[0].demote_after_tokens = 5: is not allowed for a best_effort tier",
        ),
        (f"[{{{CHAT}, admission: 1}}]", "tiers[0].admission = 1: must be true or false"),
        (f"[{{{CHAT}, max_waiting: 0}}]", "tiers[0].max_waiting = 0: must be greater than or"),
        (f"[{{{CHAT}, max_waiting: 1.5}}]", "tiers[0].max_waiting = 1.5: must be a whole number"),
        (f"[{{{CHAT}, fallback: 5}}]", "tiers[0].fallback = 5: must be a text"),
        (
            f"[{{{CHAT}, demote_after_tokens: 0}}]",
            "tiers[0].demote_after_tokens = 0: must be greater than or equal to 1",
        ),
    ],
)
def test_a_wrong_rule_is_named_with_line_and_value(
    tmp_path: Path, tiers: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"{MODELS}tiers: {tiers}")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path}/omniserve.yaml:2: {problem}"), line


def make_tier(name: str, service_class: str = "best_effort", **fields: object) -> TierConfig:
    if service_class == "latency_sensitive":
        fields = {"ttft_ms": 100, "tpot_ms": 10} | fields
    return TierConfig.model_validate({"name": name, "class": service_class} | fields)


def test_other_tiers_take_the_place_of_those_before(tmp_path: Path) -> None:
    config = load(tmp_path, RULED)
    before = table_of(config)
    others = (make_tier("bulk"), make_tier("voice", "latency_sensitive"))
    after = TierTable(others, config.models)
    # The model names no default, so that it is the first tier, whichever that is.
    assert (before.default("demo").name, after.default("demo").name) == ("chat", "bulk")
    assert after.resolve("demo", "priority").name == "voice"
    with pytest.raises(InvalidRequest, match="'chat' is not served; allowed: bulk, voice, auto"):
        after.resolve("demo", "chat")
    assert before.resolve("demo", "chat").name == "chat"


def test_a_default_tier_has_to_stay(tmp_path: Path) -> None:
    named = RULED.replace("models/demo", "models/demo, default_tier: batch")
    models = load(tmp_path, named).models
    table = TierTable((make_tier("a"), make_tier("batch")), models)
    assert table.default("demo").name == "batch"
    with pytest.raises(ReloadRefused, match="tier 'batch' must stay: model 'demo'"):
        TierTable((make_tier("a"),), models)
