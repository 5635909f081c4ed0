"""The configuration of the operator process, read from the environment once. No other module reads the environment."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from savepoint.contract.environment import SettingsError, choice, integer, required, seconds, text
from savepoint.contract.names import CONTROL_PORT, HEALTH_PORT

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MAX_PORT = 65535
MIN_SECONDS, MAX_SECONDS = 1.0, 3600.0


@dataclass(frozen=True)
class DefaultStore:
    """The AgentCheckpointStore that the chart's values describe."""

    name: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """The operator's settings. All objects named here are in ``namespace``."""

    namespace: str
    identity: str
    """The Lease's holder identity, unique per process: the pod's name."""
    tls_secret: str = "savepoint-tls"  # noqa: S105 - an object's name
    ca_secret: str = "savepoint-ca"  # noqa: S105 - an object's name
    master_key_secret: str = "savepoint-master-key"  # noqa: S105 - an object's name
    webhook_configuration: str = ""
    """Name of the MutatingWebhookConfiguration that gets the CA bundle; empty: none does."""
    services: tuple[str, ...] = ("savepoint-operator", "savepoint-webhook")
    """Names of the Services that the serving certificate is for."""
    default_store: DefaultStore | None = None
    lease: str = "savepoint-operator"
    lease_seconds: float = 30.0
    """The Lease cannot be renewed while the API server is unreachable; leadership ends after two thirds of this."""
    control_host: str = "0.0.0.0"  # noqa: S104 - pods connect from outside
    control_port: int = CONTROL_PORT
    health_port: int = HEALTH_PORT
    drain_seconds: float = 25.0
    not_running_seconds: float = 60.0
    log_level: str = "INFO"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The environment in which the API client finds the API server."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Return the settings in the environment. Raises SettingsError."""
        namespace = required(environment, "SAVEPOINT_NAMESPACE", "the namespace that the operator runs in")
        identity = environment.get("SAVEPOINT_POD_NAME") or environment.get("HOSTNAME", "")
        if not identity:
            raise SettingsError("SAVEPOINT_POD_NAME is not set: the name of the operator's pod")
        return cls(
            namespace=namespace,
            identity=identity,
            services=(
                text(environment, "SAVEPOINT_OPERATOR_SERVICE", "savepoint-operator"),
                text(environment, "SAVEPOINT_WEBHOOK_SERVICE", "savepoint-webhook"),
            ),
            default_store=_default_store(environment.get("SAVEPOINT_DEFAULT_STORE", "")),
            control_port=integer(environment, "SAVEPOINT_CONTROL_PORT", CONTROL_PORT, maximum=MAX_PORT),
            health_port=integer(environment, "SAVEPOINT_HEALTH_PORT", HEALTH_PORT, maximum=MAX_PORT),
            lease_seconds=_seconds(environment, "SAVEPOINT_LEASE_SECONDS", cls.lease_seconds),
            not_running_seconds=_seconds(environment, "SAVEPOINT_NOT_RUNNING_SECONDS", cls.not_running_seconds),
            environment=dict(environment),
            tls_secret=text(environment, "SAVEPOINT_TLS_SECRET", cls.tls_secret),
            ca_secret=text(environment, "SAVEPOINT_CA_SECRET", cls.ca_secret),
            master_key_secret=text(environment, "SAVEPOINT_MASTER_KEY_SECRET", cls.master_key_secret),
            webhook_configuration=environment.get("SAVEPOINT_WEBHOOK_CONFIGURATION", ""),
            log_level=choice(environment, "SAVEPOINT_LOG_LEVEL", cls.log_level, LOG_LEVELS),
        )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    return seconds(environment, name, default, minimum=MIN_SECONDS, maximum=MAX_SECONDS)


def _default_store(value: str) -> DefaultStore | None:
    if not value.strip():
        return None
    problem = 'SAVEPOINT_DEFAULT_STORE must have the form {"name": "default", "spec": {"s3": {…}}}'
    try:
        parsed = json.loads(value)
        name, spec = parsed["name"], parsed["spec"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(problem) from error
    if not isinstance(name, str) or not name or not isinstance(spec, dict) or "s3" not in spec:
        raise SettingsError(problem)
    return DefaultStore(name, spec)
