"""Access to the API server: in a cluster with the service account's token, elsewhere with a kubeconfig.

The same configuration serves both clients of the process, its own and kopf's. Nothing here sends a request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes.aio import client, config
from kubernetes.aio.config.incluster_config import SERVICE_CERT_FILENAME, SERVICE_TOKEN_FILENAME, InClusterConfigLoader

Client = client.ApiClient
"""The official client, which the adapters of this package use."""


@dataclass(frozen=True)
class ConnectionParameters:
    """Parameters with which kopf's client connects as this process does; ``token`` is the current one."""

    server: str
    ca_path: str | None
    certificate_path: str | None
    key_path: str | None
    token: str | None = field(repr=False)


class Access:
    """A configuration of the official client."""

    def __init__(self, configuration: client.Configuration) -> None:
        self.configuration = configuration

    @classmethod
    def in_cluster(
        cls,
        environment: Mapping[str, str],
        token: Path = Path(SERVICE_TOKEN_FILENAME),
        ca: Path = Path(SERVICE_CERT_FILENAME),
    ) -> "Access":
        """Use the service account's projected token, which the client rereads every minute. Raises ConfigException."""
        configuration = client.Configuration()
        loader = InClusterConfigLoader(str(token), str(ca), environ=environment)  # type: ignore[no-untyped-call]
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
        return cls(configuration)

    @classmethod
    async def by_kubeconfig(cls, path: Path | None = None) -> "Access":
        """Use a kubeconfig file, without a path the one in the usual place. Raises ConfigException."""
        configuration = client.Configuration()
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=None if path is None else str(path), client_configuration=configuration
        )
        return cls(configuration)

    @classmethod
    async def discover(cls, environment: Mapping[str, str]) -> "Access":
        """Use the service account in a cluster, else a kubeconfig. Raises ConfigException."""
        try:
            return cls.in_cluster(environment)
        except config.ConfigException:
            path = environment.get("KUBECONFIG")
            return await cls.by_kubeconfig(Path(path) if path else None)

    def client(self) -> Client:
        """Return a new client; the caller closes it."""
        return Client(self.configuration)

    async def connection_parameters(self) -> ConnectionParameters:
        """Return what kopf needs to connect, with the current token."""
        configuration = self.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        token = None if header is None else header.partition(" ")[2] or header
        return ConnectionParameters(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            certificate_path=configuration.cert_file,
            key_path=configuration.key_file,
            token=token,
        )
