"""Builders for tests of models that come and go: a front over a scripted engine, held loads."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from api_servers import make_manager, make_reloader
from service_builders import ScriptedEngine, make_config, make_output

from omniserve.config import load_config
from omniserve.messages import ModelProgress
from omniserve.metrics import Metrics
from omniserve.model_life.manager import ModelManager
from omniserve.reload.reloader import Reload, Reloader
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.service import GenerationService
from omniserve.settings import ModelSettings


@dataclass
class HeldLoads:
    """Loads that tell of their progress and end when they are let go, by `release`."""

    error: Exception | None = None
    """What they end with then."""
    begun: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(
        self, settings: ModelSettings, on_progress: Callable[[ModelProgress], None]
    ) -> None:
        self.begun.append(settings.name)
        on_progress(ModelProgress(1, "reading", 30, 120))
        await self.release.wait()
        if self.error is not None:
            raise self.error


class ModelSite:
    """A front with the model `demo` of its file, whose list of models can be changed."""

    def __init__(self, directory: Path, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.path = directory / "omniserve.yaml"
        self._data = make_config(checkpoint).model_dump(mode="json", exclude_unset=True)
        self.demo = self._data["models"][0]
        self.write(self.demo)
        self.engine = ScriptedEngine()
        self.service = GenerationService(load_config(self.path), self.engine, Metrics())
        self.models: ModelManager = make_manager(self.service, self.path)
        self.reloader: Reloader = make_reloader(self.service, self.path, models=self.models)

    def entry(self, name: str, **keys: object) -> dict[str, object]:
        """Of the file's list, with the checkpoint that is there."""
        return {"name": name, "path": str(self.checkpoint), **keys}

    def text(self, name: str, **keys: object) -> str:
        return str(yaml.safe_dump(self.entry(name, **keys)))

    def write(self, *models: object, **sections: object) -> None:
        self.path.write_text(yaml.safe_dump(self._data | {"models": list(models)} | sections))

    async def reload(self, *models: object, **sections: object) -> Reload:
        self.write(*models, **sections)
        return await self.reloader.reload()

    def restart_engine(self) -> None:
        """It has the model of the file alone."""
        first, *others = self.engine.settings.models
        self.engine.lost_models = tuple(others)
        self.engine.settings = replace(self.engine.settings, models=(first,))
        self.models.follow_engine("restarting")
        self.models.follow_engine("ready")

    def states(self) -> dict[str, str]:
        return {each.name: each.state for each in self.service.roster}


class Gate:
    """A script of the engine: one token, and the others when it is opened."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    async def __call__(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        num_tokens = request.sampling.max_tokens or 1
        for place in range(num_tokens):
            if place:
                await self.is_open.wait()
            yield make_output(request, place, num_tokens)
