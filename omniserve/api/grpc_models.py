"""The life of models as gRPC messages."""

import asyncio

from omniserve.api.grpc_codec import model_message
from omniserve.api.grpc_handlers import Context
from omniserve.errors import InvalidRequest
from omniserve.model_life.entries import Wanted, WantedEntry, WantedName
from omniserve.model_life.manager import ModelManager
from omniserve.model_life.standing import LoadProgress
from omniserve.service import GenerationService
from omniserve.status.status_message import progress_message
from omniserve.v1 import omniserve_pb2 as pb


async def stream_load(
    manager: ModelManager,
    service: GenerationService,
    request: pb.LoadModelRequest,
    context: Context,
) -> None:
    """Answers LoadModel. A client that reads slowly misses progress, and holds up nothing."""
    wanted = _wanted(request)
    newest: LoadProgress | None = None
    changed = asyncio.Event()

    def on_progress(progress: LoadProgress) -> None:
        nonlocal newest
        newest = progress
        changed.set()

    loading = asyncio.create_task(manager.load(wanted, on_progress), name="load-model")
    loading.add_done_callback(lambda _: changed.set())
    try:
        while not loading.done():
            await changed.wait()
            changed.clear()
            if newest is not None:
                told, newest = newest, None
                await context.write(pb.ModelEvent(progress=progress_message(told)))
        info = await loading
    finally:
        # The client has gone, or its deadline has passed.
        loading.cancel()
        await asyncio.wait({loading})
    models, tiers = service.models, service.tiers
    if info.name not in models.models:
        # Somebody was quick to unload it again.
        message = model_message(info, (), "")
    else:
        message = model_message(info, models.aliases(info.name), tiers.default(info.name).name)
    await context.write(pb.ModelEvent(loaded=message))


def _wanted(request: pb.LoadModelRequest) -> Wanted:
    kind = request.WhichOneof("wanted")
    if kind == "name" and request.name:
        return WantedName(request.name)
    if kind == "entry":
        return WantedEntry(request.entry)
    raise InvalidRequest("wanted: must be a name or an entry", "wanted")
