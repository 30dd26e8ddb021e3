"""gRPC `omniserve.v1.Admin`."""

import asyncio

from omniserve.api.grpc_codec import explanation_message
from omniserve.api.grpc_handlers import Context
from omniserve.api.grpc_models import stream_load
from omniserve.api.grpc_reload import dry_run_message, reload_message
from omniserve.calls.call_record import current_call
from omniserve.errors import InvalidRequest
from omniserve.model_life.manager import ModelManager
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.status.reporter import StatusReporter
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

DEFAULT_INTERVAL_MS = 1000
MIN_INTERVAL_MS = 100
MAX_INTERVAL_MS = 60_000


class AdminServicer(omniserve_pb2_grpc.AdminServicer):
    """Answers in every state of the engine."""

    def __init__(
        self,
        service: GenerationService,
        reloader: Reloader,
        reporter: StatusReporter,
        models: ModelManager,
    ) -> None:
        self._service = service
        self._reloader = reloader
        self._reporter = reporter
        self._models = models

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        return self._reporter.status()

    async def WatchStatus(self, request: pb.WatchStatusRequest, context: Context) -> None:
        interval_ms = request.interval_ms or DEFAULT_INTERVAL_MS
        if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
            allowed = f"{MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}, or 0 for {DEFAULT_INTERVAL_MS}"
            message = f"interval_ms: {interval_ms} is not allowed; allowed: {allowed}"
            raise InvalidRequest(message, "interval_ms")
        while True:
            await context.write(self._reporter.status())
            await asyncio.sleep(interval_ms / 1000)

    async def ReloadTiers(
        self, request: pb.ReloadTiersRequest, context: Context
    ) -> pb.ReloadTiersResponse:
        if request.dry_run:
            answer = dry_run_message(await self._reloader.dry_run())
        else:
            answer = reload_message(await self._reloader.reload())
        current_call().is_declined = not answer.accepted
        return answer

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        if not request.request_id:
            raise InvalidRequest("request_id: must be given", "request_id")
        return explanation_message(await self._service.explain(request.request_id))

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> None:
        await stream_load(self._models, self._service, request, context)

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        drain_s = request.drain_s if request.HasField("drain_s") else None
        unloaded = await self._models.unload(request.name, drain_s, force=request.force)
        return pb.UnloadModelResponse(
            num_finished=unloaded.num_finished,
            num_ended=unloaded.num_ended,
            state=unloaded.state,
        )

    async def PinModel(self, request: pb.PinModelRequest, context: Context) -> pb.PinModelResponse:
        self._models.pin(request.name, request.pinned)
        return pb.PinModelResponse()

    async def SleepModel(
        self, request: pb.SleepModelRequest, context: Context
    ) -> pb.SleepModelResponse:
        await self._models.sleep(request.name)
        return pb.SleepModelResponse()

    async def WakeModel(
        self, request: pb.WakeModelRequest, context: Context
    ) -> pb.WakeModelResponse:
        return pb.WakeModelResponse(wake_s=await self._models.wake(request.name))
