"""gRPC `omniserve.v1.Admin`."""

import asyncio

from omniserve.api.grpc_codec import explanation_message, model_status_message
from omniserve.api.grpc_errors import Context
from omniserve.api.grpc_reload import dry_run_message, reload_message
from omniserve.errors import InvalidRequest
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

DEFAULT_INTERVAL_MS = 1000
MIN_INTERVAL_MS = 100
MAX_INTERVAL_MS = 60_000


class AdminServicer(omniserve_pb2_grpc.AdminServicer):
    """Answers in every state of the engine."""

    def __init__(self, service: GenerationService, reloader: Reloader) -> None:
        self._service = service
        self._reloader = reloader

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        return self._status()

    async def WatchStatus(self, request: pb.WatchStatusRequest, context: Context) -> None:
        interval_ms = request.interval_ms or DEFAULT_INTERVAL_MS
        if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
            allowed = f"{MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}, or 0 for {DEFAULT_INTERVAL_MS}"
            message = f"interval_ms: {interval_ms} is not allowed; allowed: {allowed}"
            raise InvalidRequest(message, "interval_ms")
        while True:
            await context.write(self._status())
            await asyncio.sleep(interval_ms / 1000)

    async def ReloadTiers(
        self, request: pb.ReloadTiersRequest, context: Context
    ) -> pb.ReloadTiersResponse:
        if request.dry_run:
            return dry_run_message(await self._reloader.dry_run())
        return reload_message(await self._reloader.reload())

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        if not request.request_id:
            raise InvalidRequest("request_id: must be given", "request_id")
        return explanation_message(await self._service.explain(request.request_id))

    def _status(self) -> pb.Status:
        status = self._service.status()
        models = []
        for model in self._service.config.models:
            message = model_status_message(model.name, status.stats.get(model.name))
            metrics = self._service.metrics
            message.prompt_tokens = metrics.num_tokens(model.name, "prompt")
            message.cached_tokens = metrics.num_tokens(model.name, "cached")
            message.output_tokens = metrics.num_tokens(model.name, "output")
            models.append(message)
        return pb.Status(
            version=status.version,
            state=status.state,
            device=status.device,
            uptime_s=status.uptime_s,
            num_engine_restarts=status.num_engine_restarts,
            models=models,
        )
