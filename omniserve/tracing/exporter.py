"""How spans get to a collector: OTLP over gRPC or HTTP."""

from urllib.parse import urlsplit

from opentelemetry.sdk.trace.export import SpanExporter

from omniserve.config_listen import TracingConfig

EXPORT_S = 5.0
"""How long a batch may take, with all of its retries."""
_HTTP_PATH = "/v1/traces"


def make_exporter(config: TracingConfig) -> SpanExporter:
    """Connects when it has something to send. What the configuration does not say, such as headers
    and certificates, comes from the environment variables of OpenTelemetry.

    Raises ImportError where the package of the protocol is missing.
    """
    if config.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=config.endpoint, timeout=EXPORT_S)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter(endpoint=_with_path(config.endpoint), timeout=EXPORT_S)


def _with_path(endpoint: str) -> str:
    """An address without a path gets the one that collectors serve."""
    parts = urlsplit(endpoint)
    return endpoint if parts.path.strip("/") else parts._replace(path=_HTTP_PATH).geturl()
