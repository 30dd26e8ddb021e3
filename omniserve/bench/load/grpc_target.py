"""An OmniServe server over gRPC."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio

from omniserve.admin_address import admin_target_of
from omniserve.bench.load.http_client import HttpAddress, HttpClient
from omniserve.bench.load.metrics_text import read_clock
from omniserve.bench.load.target import (
    Clock,
    ModelInfo,
    OnTokens,
    RequestFailed,
    RequestRejected,
    StatusReading,
    TargetInfo,
    TierInfo,
    TokenRequest,
)
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

ANSWER_TIMEOUT_S = 30.0
MAX_ERROR_CHARS = 200
# A proxy of the environment has no business between a server and who measures it.
_OPTIONS = (("grpc.enable_http_proxy", 0),)
_GENERATE = "/omniserve.v1.Inference/Generate"
_REFUSALS = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


class GrpcTarget:
    """Made inside a running event loop."""

    def __init__(self, address: str, http: str | None = None, token: str | None = None) -> None:
        """`http` is where the same server answers HTTP, for its metrics; raises ConfigError.

        Its status is asked on this machine alone, where it listens for its operators.
        """
        self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._inference = omniserve_pb2_grpc.InferenceStub(self._channel)
        admin = admin_target_of(address)
        # Elsewhere nobody may ask for it: the server then says that it does not know the service.
        self._admin_channel = grpc.aio.insecure_channel(admin or address, _OPTIONS)
        self._admin = omniserve_pb2_grpc.AdminStub(self._admin_channel)
        self._http = HttpClient(HttpAddress.parse(http)) if http is not None else None
        # Requests were serialised when they were made.
        self._generate: grpc.aio.UnaryStreamMultiCallable[bytes, pb.GenerateChunk]
        self._generate = self._channel.unary_stream(
            _GENERATE, response_deserializer=pb.GenerateChunk.FromString
        )

    async def describe(self) -> TargetInfo:
        try:
            listed = await self._inference.ListModels(
                pb.ListModelsRequest(), timeout=ANSWER_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(f"cannot ask the server what it serves: {_said(error)}") from None
        status = await self._status()
        models = tuple(
            ModelInfo(
                model.name,
                model.vocab_size,
                model.max_model_len,
                model.default_tier,
                model.num_layers or None,
            )
            for model in listed.models
        )
        tiers = tuple(_tier(tier) for tier in listed.tiers)
        return TargetInfo("OmniServe", status.version, status.device, models, tiers)

    async def _status(self) -> pb.Status:
        """Empty where the server does not tell us: it is elsewhere, or another user's."""
        try:
            request = pb.GetStatusRequest()
            status: pb.Status = await self._admin.GetStatus(request, timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return pb.Status()
        return status

    def encode(self, request: TokenRequest) -> bytes:
        """`extra_body` is for HTTP and has no place here."""
        message = pb.GenerateRequest(
            model=request.model,
            token_ids=pb.TokenIds(ids=request.token_ids),
            tier=request.tier,
            sampling=pb.Sampling(max_tokens=request.max_tokens, temperature=0, ignore_eos=True),
        )
        return message.SerializeToString()

    async def send(self, payload: bytes, on_tokens: OnTokens) -> int:
        num_tokens = 0
        try:
            async for chunk in self._generate(payload, metadata=self._metadata):
                if chunk.token_ids:
                    num_tokens += len(chunk.token_ids)
                    on_tokens(len(chunk.token_ids))
        except grpc.aio.AioRpcError as error:
            is_refused = num_tokens == 0 and error.code() in _REFUSALS
            raise (RequestRejected if is_refused else RequestFailed)(_said(error)) from None
        return num_tokens

    async def clock(self) -> Clock:
        if self._http is None:
            return {}
        answer = await self._http.get("/metrics")
        return read_clock(answer.body.decode("utf-8", "replace"))

    async def watch_status(self, interval_ms: int) -> AsyncIterator[StatusReading]:
        try:
            async for status in self._admin.WatchStatus(
                pb.WatchStatusRequest(interval_ms=interval_ms)
            ):
                yield _reading(status)
        except grpc.aio.AioRpcError:
            return

    async def close(self) -> None:
        if self._http is not None:
            self._http.close()
        await self._channel.close(None)
        await self._admin_channel.close(None)


def _tier(tier: pb.Tier) -> TierInfo:
    return TierInfo(
        tier.name,
        "best_effort" if tier.service_class == "best_effort" else "latency_sensitive",
        tier.ttft_ms if tier.HasField("ttft_ms") else None,
        tier.tpot_ms if tier.HasField("tpot_ms") else None,
    )


def _reading(status: pb.Status) -> StatusReading:
    models = status.models
    lanes = [model.piggyback for model in models if model.HasField("piggyback")]
    return StatusReading(
        kv_used_bytes=sum(model.kv_used_bytes for model in models),
        kv_total_bytes=sum(model.kv_total_bytes for model in models),
        num_running=sum(sum(model.running.values()) for model in models),
        num_waiting=sum(sum(model.waiting.values()) for model in models),
        num_offloaded=sum(lane.num_offloaded for lane in lanes),
        num_steps=sum(model.num_steps for model in models),
        num_preemptions=sum(model.num_preemptions for model in models),
        num_rows_joined=sum(lane.num_rows_joined for lane in lanes),
        num_piggybacked_tokens=sum(lane.num_tokens for lane in lanes),
    )


def _said(error: grpc.aio.AioRpcError) -> str:
    return f"gRPC {error.code().name}: {(error.details() or '')[:MAX_ERROR_CHARS]}"
