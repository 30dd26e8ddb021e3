"""Makes of the models what a changed file says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from omniserve.config import ModelConfig
from omniserve.config_tier import TierConfig
from omniserve.errors import ConfigError
from omniserve.model_life.entries import settings_beside
from omniserve.model_life.loads import Load
from omniserve.model_life.manager import ModelManager
from omniserve.model_table import ModelTable
from omniserve.reload.model_changes import ModelPlan
from omniserve.served_model import ServedModel
from omniserve.service import GenerationService
from omniserve.settings import ModelSettings


class ModelTakeover:
    """Of one daemon."""

    def __init__(self, service: GenerationService, models: ModelManager) -> None:
        self._service = service
        self._models = models

    def loads(
        self,
        plan: ModelPlan,
        tiers: Sequence[TierConfig],
        parts: Mapping[str, ServedModel],
    ) -> tuple[Load, ...]:
        """What is to be loaded, with tokenizers that were read already.

        Raises ConfigError and ModelExists.
        """
        everyone = (*plan.kept, *plan.others, *plan.loads)
        return tuple(
            Load(model, self._settings(model, everyone, tiers), "file", parts.get(model.name))
            for model in plan.loads
        )

    def _settings(
        self, model: ModelConfig, everyone: Sequence[ModelConfig], tiers: Sequence[TierConfig]
    ) -> ModelSettings:
        others = [each for each in everyone if each is not model]
        try:
            return settings_beside(model, others, tiers, self._service.config)
        except ConfigError as error:
            problem = str(error).removeprefix("entry:1: ")
            raise ConfigError(f"models.{model.name}.{problem}") from None

    def table(self, plan: ModelPlan) -> ModelTable:
        """The models that requests find once the plan is in force."""
        table = self._service.models.with_configs(plan.kept).ordered(plan.order)
        for name in plan.removals:
            table = table.without(name)
        return table

    def carry_out(self, plan: ModelPlan, loads: Sequence[Load]) -> None:
        """Returns at once: what takes time goes on afterwards, first what frees memory."""
        roster = self._service.roster
        for model in plan.kept:
            standing = roster.get(model.name)
            assert standing is not None
            has_changed = model.pinned != standing.config.pinned
            is_pinned = model.pinned if has_changed else standing.is_pinned
            roster.put(replace(standing, config=model, origin="file", is_pinned=is_pinned))
            if standing.state == "loading":
                self._models.loads.rename(model)
        for name in plan.forgotten:
            roster.remove(name)
        for name in plan.removals:
            self._remove(name)
        # Whoever had them removed: what they give back may be what a load needs.
        ahead = (*self._models.drains.under_way, *self._models.loads.given_up)
        for load in loads:
            self._models.loads.begin(load, after=ahead)
        roster.order(plan.order)

    def _remove(self, name: str) -> None:
        standing = self._service.roster.get(name)
        assert standing is not None
        if standing.state == "loading":
            self._models.loads.give_up(name)
        else:
            self._models.drains.begin(standing, self._service.config.daemon.shutdown_grace_s)
