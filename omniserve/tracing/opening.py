"""Traces where the configuration asks for them; imports OpenTelemetry only then."""

from typing import TYPE_CHECKING

from omniserve.config_listen import TracingConfig
from omniserve.errors import ConfigError
from omniserve.service import GenerationService

if TYPE_CHECKING:
    from omniserve.tracing.tracing import Tracing


def open_tracing(config: TracingConfig | None, service: GenerationService) -> "Tracing | None":
    """Traces the service's calls from now on; whoever gets a Tracing must close it.

    Raises ConfigError where the packages that this needs are not installed.
    """
    if config is None:
        return None
    try:
        from omniserve.tracing.exporter import make_exporter
        from omniserve.tracing.span_queue import SpanQueue
        from omniserve.tracing.tracing import Tracing

        exporter = make_exporter(config)
    except ImportError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            f"tracing: needs the package {error.name}; pip install '.[tracing]' in the release's "
            "directory, or take tracing out of the configuration"
        ) from None
    spans = SpanQueue(exporter, service.metrics.spans)
    tracing = Tracing(spans, config.sample_share, service.explain)
    service.calls.trace_to(tracing)
    return tracing
