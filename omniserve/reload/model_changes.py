"""What a changed file means for the models that there are: to load, to remove, to change."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omniserve.config import ModelConfig
from omniserve.errors import ModelExists, ReloadRefused
from omniserve.model_life.entries import check_names
from omniserve.model_life.standing import ModelStanding
from omniserve.reload.tier_change import TierChange, shown, shown_keys

IN_PLACE = ("aliases", "default_tier", "pinned")
"""Keys that change while the model serves; the others are settled when it is loaded."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What a reload makes of models; those of operators that the file does not name stay."""

    loads: tuple[ModelConfig, ...] = ()
    removals: tuple[str, ...] = ()
    """Drained and unloaded, or given up where they are being loaded."""
    forgotten: tuple[str, ...] = ()
    """They failed, and the file has them no more."""
    kept: tuple[ModelConfig, ...] = ()
    """Of the file, in its order, as they are from now on: with its aliases and defaults."""
    others: tuple[ModelConfig, ...] = ()
    """That stay, and that the file does not have."""
    changes: tuple[TierChange, ...] = ()
    needs_restart: tuple[str, ...] = ()
    """Key paths of what differs and is settled when a model is loaded."""
    notes: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    """Names of the file, in its order."""


def plan_models(standings: Iterable[ModelStanding], file: Sequence[ModelConfig]) -> ModelPlan:
    """Raises ReloadRefused where a model of the file is being unloaded, or one of its names is
    that of a model that stays."""
    present = {each.name: each for each in standings}
    kept, loads = [], []
    changes: list[TierChange] = []
    restart: list[str] = []
    notes: list[str] = []
    for model in file:
        standing = present.get(model.name)
        if standing is None or standing.state == "failed":
            loads.append(model)
            changes.append(TierChange("", f"models.{model.name}", "", _whole(model)))
            if standing is not None:
                notes.append(f"model {model.name!r} failed before: {standing.error}")
            continue
        if standing.state == "draining":
            raise ReloadRefused(
                f"model {model.name!r} is being unloaded, and the file has it; reload again once "
                "it is gone"
            )
        kept.append(_with_keys_of(standing.config, model))
        changes += _changed_in_place(standing.config, model)
        restart += _settled_keys(standing.config, model)
    plan = _others(present, {model.name for model in file})
    for model in (*kept, *loads):
        _check_beside(model, plan.others)
    return ModelPlan(
        loads=tuple(loads),
        removals=plan.removals,
        forgotten=plan.forgotten,
        kept=tuple(kept),
        others=plan.others,
        changes=(*changes, *plan.changes),
        needs_restart=tuple(restart),
        notes=(*notes, *plan.notes),
        order=tuple(model.name for model in file),
    )


def _others(present: dict[str, ModelStanding], file: set[str]) -> ModelPlan:
    """What becomes of those that the file does not name."""
    removals, forgotten, others = [], [], []
    changes: list[TierChange] = []
    notes: list[str] = []
    for name, standing in present.items():
        if name in file or standing.state == "draining":
            continue
        if standing.origin == "operator":
            if standing.state != "failed":
                others.append(standing.config)
        elif standing.state == "failed":
            forgotten.append(name)
        elif standing.is_pinned and not standing.config.pinned:
            # An operator said so, after the file was written.
            others.append(standing.config)
            notes.append(f"model {name!r} is not in the file; it is pinned, and stays")
        else:
            removals.append(name)
            changes.append(TierChange("", f"models.{name}", _whole(standing.config), ""))
    return ModelPlan(
        removals=tuple(removals),
        forgotten=tuple(forgotten),
        others=tuple(others),
        changes=tuple(changes),
        notes=tuple(notes),
    )


def _check_beside(model: ModelConfig, others: Sequence[ModelConfig]) -> None:
    try:
        check_names(model, others)
    except ModelExists as error:
        raise ReloadRefused(f"models.{model.name}.{error}, which is not of the file") from None


def _with_keys_of(in_force: ModelConfig, model: ModelConfig) -> ModelConfig:
    return in_force.model_copy(update={key: getattr(model, key) for key in IN_PLACE})


def _changed_in_place(was: ModelConfig, is_now: ModelConfig) -> Iterator[TierChange]:
    before, after = _keys(was), _keys(is_now)
    for key in IN_PLACE:
        if before.get(key) != after.get(key):
            path = f"models.{was.name}.{key}"
            yield TierChange("", path, shown(before.get(key)), shown(after.get(key)))


def _settled_keys(was: ModelConfig, is_now: ModelConfig) -> Iterator[str]:
    before, after = _flat(_keys(was)), _flat(_keys(is_now))
    for key in dict.fromkeys((*before, *after)):
        if key not in IN_PLACE and before.get(key) != after.get(key):
            yield f"models.{was.name}.{key}"


def _keys(model: ModelConfig) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _flat(keys: dict[str, Any]) -> dict[str, Any]:
    """With the keys of a section as `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return flat


def _whole(model: ModelConfig) -> str:
    return shown_keys(model.model_dump(mode="json", exclude={"name"}, exclude_defaults=True))
