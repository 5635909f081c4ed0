"""How the operator reaches the API server: in a cluster by its account's token, else by a kubeconfig.

One description for both clients of the process, ours and kopf's; nothing here sends a request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes.aio import client, config
from kubernetes.aio.config.incluster_config import SERVICE_CERT_FILENAME, SERVICE_TOKEN_FILENAME, InClusterConfigLoader

Client = client.ApiClient
"""The official client: who holds one hands it to a door of this package."""


@dataclass(frozen=True)
class Connection:
    """What another client needs to connect as we do. ``token`` is read anew each time it is asked for."""

    server: str
    ca_path: str | None
    certificate_path: str | None
    key_path: str | None
    token: str | None = field(repr=False)


class Access:
    """A configuration of the official client, and what it says to others."""

    def __init__(self, configuration: client.Configuration) -> None:
        self.configuration = configuration

    @classmethod
    def in_cluster(
        cls,
        environment: Mapping[str, str],
        token: Path = Path(SERVICE_TOKEN_FILENAME),
        ca: Path = Path(SERVICE_CERT_FILENAME),
    ) -> "Access":
        """By the account's projected token; the client reads it again every minute. Raises ConfigException."""
        configuration = client.Configuration()
        loader = InClusterConfigLoader(str(token), str(ca), environ=environment)  # type: ignore[no-untyped-call]
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
        return cls(configuration)

    @classmethod
    async def by_kubeconfig(cls, path: Path | None = None) -> "Access":
        """By a kubeconfig file; without a path the usual places. Raises ConfigException."""
        configuration = client.Configuration()
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=None if path is None else str(path), client_configuration=configuration
        )
        return cls(configuration)

    @classmethod
    async def discover(cls, environment: Mapping[str, str]) -> "Access":
        """In a cluster, else by kubeconfig."""
        try:
            return cls.in_cluster(environment)
        except config.ConfigException:
            path = environment.get("KUBECONFIG")
            return await cls.by_kubeconfig(Path(path) if path else None)

    def client(self) -> Client:
        """A new client; to be closed by whoever asked."""
        return Client(self.configuration)

    async def connection(self) -> Connection:
        """For kopf."""
        configuration = self.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        token = None if header is None else header.partition(" ")[2] or header
        return Connection(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            certificate_path=configuration.cert_file,
            key_path=configuration.key_file,
            token=token,
        )
