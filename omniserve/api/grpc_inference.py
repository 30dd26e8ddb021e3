"""gRPC `omniserve.v1.Inference`."""

import time

from omniserve.api.grpc_access import current_caller
from omniserve.api.grpc_codec import (
    CallDetails,
    choice_message,
    chunk_message,
    generation_request,
    model_message,
    prompt_of,
    tier_message,
    usage_message,
)
from omniserve.api.grpc_handlers import Context
from omniserve.api.grpc_unread import WatchedWriter
from omniserve.errors import InvalidRequest
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

TIER_METADATA_KEY = "x-omniserve-tier"
TENANT_METADATA_KEY = "x-omniserve-tenant"


class InferenceServicer(omniserve_pb2_grpc.InferenceServicer):
    """Translates; errors are left to the interceptor."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        # Chunks are written, not yielded: a cancelled call then leaves the block here and now.
        wanted = generation_request(request, _call_details(context), time.monotonic())
        unread_s = self._service.config.limits.unread_s
        async with (
            await self._service.start(wanted) as stream,
            WatchedWriter(context, unread_s) as client,
        ):
            async for chunk in stream:
                await client.write(chunk_message(chunk, stream.request_id, stream.tokenizer))

    async def Complete(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResult:
        wanted = generation_request(request, _call_details(context), time.monotonic())
        async with await self._service.start(wanted) as stream:
            result = await stream.result()
        return pb.GenerateResult(
            choices=[choice_message(choice, stream.tokenizer) for choice in result.choices],
            usage=usage_message(result.usage),
            request_id=stream.request_id,
            model=stream.model,
            tier=stream.tier,
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        token_ids = await self._service.texts.tokenize(
            request.model, prompt_of(request), current_caller()
        )
        max_model_len = self._service.model_info(request.model).max_model_len
        return pb.TokenizeResponse(token_ids=token_ids, max_model_len=max_model_len)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        text = self._service.texts.detokenize(
            request.model,
            tuple(request.token_ids),
            keep_special_tokens=request.keep_special_tokens,
            caller=current_caller(),
        )
        return pb.DetokenizeResponse(text=text)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        service, caller = self._service, current_caller()
        tiers, models = service.tiers, service.models
        return pb.ListModelsResponse(
            models=[
                model_message(
                    service.model_info(name),
                    models.aliases(name),
                    tiers.default(name, caller).name,
                    service.model_state(name),
                )
                for name in models.allowed(caller)
            ],
            tiers=[tier_message(tier) for tier in tiers.allowed(caller)],
        )


def _call_details(context: Context) -> CallDetails:
    found = {TIER_METADATA_KEY: "", TENANT_METADATA_KEY: ""}
    for key, value in context.invocation_metadata() or ():
        if key in found:
            if not isinstance(value, str):
                param = key.removeprefix("x-omniserve-")
                raise InvalidRequest(f"{key}: must be text", param)
            # The first counts where there are several.
            found[key] = found[key] or value
    return CallDetails(
        found[TIER_METADATA_KEY],
        found[TENANT_METADATA_KEY],
        context.time_remaining(),
        current_caller(),
    )
