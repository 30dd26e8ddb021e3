"""Credentials of a gRPC server that follow a Tls."""

import grpc

from omniserve.tls import Tls, TlsMaterial


def grpc_credentials(tls: Tls) -> grpc.ServerCredentials:
    """For one server; every connection gets what is in force when it comes."""
    follower = _Follower(tls)
    return grpc.dynamic_ssl_server_credentials(
        _certificates(follower.told),
        follower.news,  # type: ignore[arg-type]  # None is what it asks for, whatever its types say.
        require_client_authentication=follower.told.client_ca is not None,
    )


class _Follower:
    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self.told = tls.material

    def news(self) -> grpc.ServerCertificateConfiguration | None:
        """Called in a thread of gRPC's own, for every connection; None where nothing changed."""
        material = self._tls.material
        if material is self.told:
            return None
        self.told = material
        return _certificates(material)


def _certificates(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    pairs = [(material.key, material.certificate)]
    return grpc.ssl_server_certificate_configuration(pairs, material.client_ca)
