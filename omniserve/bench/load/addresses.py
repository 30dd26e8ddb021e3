"""Where a server is, and how to talk to it, as the command line says it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from omniserve.config_values import split_address
from omniserve.errors import ConfigError

if TYPE_CHECKING:
    from omniserve.bench.load.target import Target


@dataclass(frozen=True, slots=True)
class Addresses:
    """At least one of both; with both it is one OmniServe server."""

    grpc: str | None = None
    """host:port."""
    http: str | None = None
    """http://host:port."""
    over: Literal["grpc", "http"] | None = None
    """What requests are sent over; None prefers gRPC."""
    vocab_size: int | None = None
    """Of prompts over HTTP, where nothing tells it."""
    token: str | None = field(default=None, repr=False)
    """Of the tenant that sends the load."""

    def checked(self) -> "Addresses":
        """Itself; raises ConfigError."""
        for over in ("grpc", "http"):
            if self.over == over and getattr(self, over) is None:
                raise ConfigError(f"--over {over}: needs --{over} too")
        if self.grpc is not None:
            try:
                split_address(self.grpc)
            except ValueError as error:
                raise ConfigError(f"--grpc {self.grpc}: {error}; give host:port") from None
        return self

    def receivers(self) -> tuple[str, ...]:
        """host:port of each; raises ConfigError for an HTTP address that is none."""
        from omniserve.bench.load.http_client import HttpAddress

        http = None if self.http is None else HttpAddress.parse(self.http).authority
        return tuple(each for each in (self.grpc, http) if each is not None)

    def open(self) -> "Target":
        """Made inside a running event loop; raises ConfigError for an HTTP address that is none."""
        from omniserve.bench.load.grpc_target import GrpcTarget
        from omniserve.bench.load.http_target import HttpTarget

        if self.http is None or (self.grpc is not None and self.over != "http"):
            assert self.grpc is not None
            return GrpcTarget(self.grpc, self.http, self.token)
        return HttpTarget(self.http, self.vocab_size, self.grpc, self.token)
