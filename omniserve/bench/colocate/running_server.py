"""A server that answers."""

from dataclasses import dataclass

from omniserve.bench.colocate.processes import ServerProcess
from omniserve.bench.colocate.server_plan import ServerPlan


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A process and where it listens."""

    plan: ServerPlan
    process: ServerProcess
    http: str
    """As a URL."""
    grpc: str | None
    """host:port, of a server that tells its status there."""
