"""gRPC methods as the server calls them, from the bytes of a message to the status, no socket."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message

from fuzz.byte_source import ByteSource
from fuzz.defects import PLANTED_PROMPT, LogWatch, check, check_message
from fuzz.front_under_test import AUTHORIZATIONS, Front, make_fronts
from fuzz.protobuf_builder import fill
from fuzz.wild_values import wild_text
from omniserve.api.grpc_access import AccessInterceptor
from omniserve.api.grpc_admin import AdminServicer
from omniserve.api.grpc_calls import CallInterceptor
from omniserve.api.grpc_errors import ErrorInterceptor
from omniserve.api.grpc_inference import InferenceServicer
from omniserve.api.grpc_places import PlaceInterceptor
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

INFERENCE: tuple[tuple[str, type[Message]], ...] = (
    ("Inference/Generate", pb.GenerateRequest),
    ("Inference/Generate", pb.GenerateRequest),
    ("Inference/Complete", pb.GenerateRequest),
    ("Inference/Tokenize", pb.TokenizeRequest),
    ("Inference/Detokenize", pb.DetokenizeRequest),
    ("Inference/ListModels", pb.ListModelsRequest),
)
METHODS: tuple[tuple[str, type[Message]], ...] = (
    *INFERENCE,
    ("Admin/GetStatus", pb.GetStatusRequest),
    ("Admin/WatchStatus", pb.WatchStatusRequest),
    ("Admin/Explain", pb.ExplainRequest),
)
MAX_ANSWER_BYTES = 4 << 20
"""What a client takes by default."""
MAX_CALLS = 4
CASE_S = 20.0
_BAD_CODES = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED)

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class CallDetails:
    """What interceptors see of a call before anything of it is read."""

    method: str
    invocation_metadata: Metadata


class CallContext:
    """What a method sees of its call. The client goes away after `num_writes` messages."""

    def __init__(self, metadata: Metadata, message: bytes, num_writes: int) -> None:
        self.code = grpc.StatusCode.OK
        self.details = ""
        self.messages = [message]
        """As they come over the wire."""
        self.parse: Callable[[bytes], Any] | None = None
        self._metadata = metadata
        self._num_writes = num_writes

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def read(self) -> Any:
        if not self.messages:
            return grpc.aio.EOF
        message = self.messages.pop()
        return message if self.parse is None else self.parse(message)

    async def write(self, message: Message) -> None:
        check(len(message.SerializeToString()) <= MAX_ANSWER_BYTES, "a message that is too large")
        if self._num_writes == 0:
            raise asyncio.CancelledError
        self._num_writes -= 1

    async def abort_with_status(self, status: Any) -> NoReturn:
        await self.abort(status.code, status.details)

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.code, self.details = code, details
        raise grpc.aio.AbortError


class _MethodTable:
    """Takes what the generated code hands to a server."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": each for name, each in handlers.items()}


class GrpcFront:
    """The methods of one front, behind the interceptors that its servers have."""

    def __init__(self, front: Front) -> None:
        self.front = front
        table: Any = _MethodTable()
        service = front.service
        omniserve_pb2_grpc.add_InferenceServicer_to_server(InferenceServicer(service), table)
        admin = AdminServicer(service, front.reloader, front.reporter, front.models)
        omniserve_pb2_grpc.add_AdminServicer_to_server(admin, table)
        self._handlers = table.handlers
        outer = (CallInterceptor(service.calls), ErrorInterceptor())
        places = PlaceInterceptor(MAX_CALLS)
        self._interceptors = {
            "Admin": (*outer, places),
            "Inference": (*outer, AccessInterceptor(service.access), places),
        }

    async def call(self, method: str, context: CallContext) -> None:
        """`method` is `Service/Method`."""
        # In a task of its own, as each call has.
        task = asyncio.ensure_future(self._answered(method, context))
        try:
            answer = await task
        except (grpc.aio.AbortError, asyncio.CancelledError):
            return
        if answer is not None:
            check(len(answer.SerializeToString()) <= MAX_ANSWER_BYTES, "too large an answer")

    async def _answered(self, method: str, context: CallContext) -> Any:
        path = f"/omniserve.v1.{method}"
        details = CallDetails(path, context.invocation_metadata())
        interceptors = self._interceptors[method.partition("/")[0]]
        handler = await _intercepted(interceptors, self._handlers[path], details)
        kinds = [["unary_unary", "unary_stream"], ["stream_unary", "stream_stream"]]
        behaviour = getattr(handler, kinds[handler.request_streaming][handler.response_streaming])
        context.parse = handler.request_deserializer
        # A method that takes a stream reads it from the context.
        request = None if handler.request_streaming else await context.read()
        return await behaviour(request, context)


async def _intercepted(interceptors: Sequence[Any], handler: Any, details: CallDetails) -> Any:
    if not interceptors:
        return handler

    async def found(details: Any) -> Any:
        return await _intercepted(interceptors[1:], handler, details)

    return await interceptors[0].intercept_service(found, details)


class GrpcTarget:
    """An open front and one with tenants, for all cases."""

    name = "grpc"

    def __init__(self, checkpoint: Path) -> None:
        self._log = LogWatch()
        self._loop = asyncio.new_event_loop()
        self.fronts = make_fronts(checkpoint)
        self._callable = [GrpcFront(front) for front in self.fronts]

    def run(self, data: bytes) -> None:
        """Raises Defect, or whatever the system under test lets out."""
        self._loop.run_until_complete(self._case(ByteSource(data)))

    def close(self) -> None:
        self._loop.close()

    async def _case(self, source: ByteSource) -> None:
        system = source.choice(self._callable)
        method, kind = source.choice(METHODS)
        # What never ends by itself ends with its first message.
        most_writes = (0,) if method == "Admin/WatchStatus" else (0, 1, 2, 1000)
        metadata, num_writes = _metadata(source), source.choice(most_writes)
        message = source.rest() if source.below(8) == 0 else built_message(kind, source)
        context = CallContext(metadata, message, num_writes)
        async with asyncio.timeout(CASE_S):
            await system.call(method, context)
        # First of all: it tells more than a status.
        self._log.check()
        if context.code is not grpc.StatusCode.OK:
            check(context.code not in _BAD_CODES, f"{context.code}: {context.details}")
            check_message(context.details)
        system.front.check_idle()


def _metadata(source: ByteSource) -> Metadata:
    """As grpc hands it on: keys of lower case, and values of printable ASCII, or bytes."""
    entries: list[tuple[str, str | bytes]] = []
    for _ in range(source.choice((1, 1, 1, 0, 2))):
        entries.append(("authorization", source.choice((*AUTHORIZATIONS[:1] * 8, *AUTHORIZATIONS))))
    for key in ("x-omniserve-tier", "x-omniserve-tenant", "traceparent", "x-omniserve-tier-bin"):
        if source.below(4) == 0:
            text = wild_text(source)
            is_binary = key.endswith("-bin") or source.below(8) == 0
            shown = "".join(char for char in text if " " <= char <= "~")
            entries.append((key, text.encode() if is_binary else shown))
    return tuple(entries)


def built_message(kind: type[Message], source: ByteSource) -> bytes:
    """Most often for the model that is there, and with a prompt that is secret."""
    message: Any = kind()
    names = message.DESCRIPTOR.fields_by_name
    if "model" in names:
        message.model = "demo"
    if "text" in names:
        message.text = PLANTED_PROMPT
    if isinstance(message, pb.GenerateRequest) and source.flag():
        message.chat.messages.add(role="user", content=PLANTED_PROMPT)
    fill(message, source)
    serialised: bytes = message.SerializeToString()
    return serialised
