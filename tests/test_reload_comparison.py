"""What a reload finds changed: tiers, and keys that need a restart."""

from typing import Any

from omniserve.config import Config
from omniserve.config_tier import TierConfig
from omniserve.model_life.standing import ModelRoster
from omniserve.reload.change_text import change_text
from omniserve.reload.comparison import Comparison, compare
from omniserve.reload.model_changes import plan_models
from omniserve.reload.tier_change import TierChange

CHAT = {"name": "chat", "class": "latency_sensitive", "ttft_ms": 500, "tpot_ms": 50}
BATCH = {"name": "batch", "class": "best_effort"}
DEMO = {"name": "demo", "path": "/models/demo"}
MACHINE = {"device": {"kind": "cuda"}}
"""So that piggybacking does not depend on the cores of this machine."""


def make_config(*tiers: dict[str, Any], **sections: Any) -> Config:
    data = MACHINE | {"models": [DEMO], "tiers": list(tiers or (CHAT, BATCH))} | sections
    return Config.model_validate(data, by_name=False)


def compared(
    started: Config, after: Config, tiers: tuple[TierConfig, ...] | None = None
) -> Comparison:
    """With a file, where models and, unless others are given, tiers are those of the start."""
    models = plan_models(ModelRoster(started.models, 0.0), after.models)
    return compare(started, tiers or started.tiers, started.tenants, after, models)


def changes(after: Config, before: Config | None = None) -> list[TierChange]:
    return list(compared(before or make_config(), after).changes)


def restart_keys(after: Config, before: Config | None = None) -> tuple[str, ...]:
    return compared(before or make_config(), after).needs_restart


def test_nothing_changed() -> None:
    assert compared(make_config(), make_config()) == compared(
        make_config(), make_config(CHAT | {"percentile": 99}, BATCH)
    )
    assert changes(make_config()) == []
    assert restart_keys(make_config()) == ()


def test_keys_of_a_tier_as_the_file_has_them() -> None:
    after = make_config(
        CHAT | {"ttft_ms": 250.5, "percentile": 95, "admission": False, "fallback": "batch"},
        BATCH | {"max_waiting": 7},
    )
    assert changes(after) == [
        TierChange("chat", "ttft_ms", "500", "250.5"),
        TierChange("chat", "percentile", "99", "95"),
        TierChange("chat", "admission", "true", "false"),
        TierChange("chat", "fallback", "", "batch"),
        TierChange("batch", "max_waiting", "", "7"),
    ]
    assert changes(make_config(), before=after)[-1] == TierChange("batch", "max_waiting", "7", "")


def test_a_class_that_changed_brings_its_objectives() -> None:
    changed = changes(make_config(CHAT, CHAT | {"name": "batch"}))
    assert [(change.tier, change.key) for change in changed] == [
        *(("batch", key) for key in ("class", "ttft_ms", "tpot_ms", "percentile", "admission"))
    ]
    assert (changed[0].before, changed[0].after) == ("best_effort", "latency_sensitive")


def test_new_and_removed_tiers() -> None:
    night = {"name": "night", "class": "best_effort", "max_waiting": 3}
    assert changes(make_config(CHAT, night)) == [
        TierChange("batch", "", "{class: best_effort}", ""),
        TierChange("night", "", "", "{class: best_effort, max_waiting: 3}"),
    ]


def test_changes_in_words() -> None:
    night = {"name": "night", "class": "best_effort"}
    found = changes(make_config(night, CHAT | {"fallback": "night"}))
    found += changes(make_config(BATCH, CHAT))
    assert [change_text(each.tier, each.key, each.before, each.after) for each in found] == [
        "chat: fallback - -> night",
        "batch: gone",
        "night: new: {class: best_effort}",
        "order: chat, batch -> batch, chat",
    ]


def test_another_order_is_another_default() -> None:
    assert changes(make_config(BATCH, CHAT)) == [
        TierChange("", "tiers", "chat, batch", "batch, chat")
    ]


def test_tiers_in_force_count_and_not_those_of_the_start() -> None:
    started, in_force = make_config(), make_config(CHAT | {"ttft_ms": 100}, BATCH).tiers
    assert compared(started, started, in_force).changes == (
        TierChange("chat", "ttft_ms", "100", "500"),
    )


def test_all_else_needs_a_restart() -> None:
    after = make_config(
        listen={"grpc": "127.0.0.1:1"},
        daemon={"shutdown_grace_s": 1},
        models=[
            DEMO | {"block_size": 16, "default_tier": "batch"},
        ],
    )
    assert restart_keys(after) == (
        *("listen.grpc", "daemon.shutdown_grace_s"),
        "models.demo.block_size",
    )
    assert set(restart_keys(make_config(), before=after)) == set(restart_keys(after))
    assert changes(after) == [TierChange("", "models.demo.default_tier", "", "batch")]


def test_models_in_another_order_are_no_change() -> None:
    models = [DEMO, {"name": "other", "path": "/models/other"}]
    found = compared(make_config(models=models[::-1]), make_config(models=models))
    assert (found.changes, found.needs_restart) == ((), ())


def test_first_best_effort_tier_turns_piggybacking_on_at_a_restart() -> None:
    assert restart_keys(make_config(), before=make_config(CHAT)) == ("models.demo.piggyback",)
    assert restart_keys(make_config(CHAT), before=make_config()) == ("models.demo.piggyback",)
