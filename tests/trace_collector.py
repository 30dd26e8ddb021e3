"""Stand-ins for a collector of traces: real servers on sockets that keep the spans they get."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2 as pb,
)
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2_grpc,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

PATIENCE_S = 60.0


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps everything, as it came."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.resource_spans: list[ResourceSpans] = []
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:
        with self._changed:
            self.resource_spans.extend(request.resource_spans)
            self._changed.notify_all()
        return pb.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for group in self.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def wait_spans(self, count: int) -> list[Span]:
        """Blocks until so many have come."""
        with self._changed:
            found = self._changed.wait_for(lambda: len(self.spans) >= count, PATIENCE_S)
        assert found, f"{len(self.spans)} spans came, not {count}"
        return self.spans

    @property
    def raw(self) -> bytes:
        """All that came, to be searched for what should not be there."""
        return b"".join(group.SerializeToString() for group in self.resource_spans)


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    register(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()


@contextmanager
def http_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.Export(pb.ExportTraceServiceRequest.FromString(body), None)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def attributes(owner: Any) -> dict[str, Any]:
    """Of a span, an event or a resource."""
    return {each.key: _value(each.value) for each in owner.attributes}


def _value(value: AnyValue) -> Any:
    return getattr(value, str(value.WhichOneof("value")))
