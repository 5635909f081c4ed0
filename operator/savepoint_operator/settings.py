"""The operator process's configuration, read from the environment once. Nothing else of the process reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from savepoint.contract.names import CONTROL_PORT, HEALTH_PORT

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(ValueError):
    """A variable is missing or wrong; the message names it and says what it should be."""


@dataclass(frozen=True)
class DefaultStore:
    """The AgentCheckpointStore that the installation's values describe."""

    name: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """Names are of objects in ``namespace``."""

    namespace: str
    identity: str
    """What the Lease names as its holder, unique per process: the pod's name."""
    tls_secret: str = "savepoint-tls"  # noqa: S105 - an object's name
    ca_secret: str = "savepoint-ca"  # noqa: S105 - an object's name
    master_key_secret: str = "savepoint-master-key"  # noqa: S105 - an object's name
    webhook_configuration: str = ""
    """Empty: no CA bundle is written anywhere."""
    services: tuple[str, ...] = ("savepoint-operator", "savepoint-webhook")
    """Names of the Services for which the serving certificate is made."""
    default_store: DefaultStore | None = None
    lease: str = "savepoint-operator"
    lease_seconds: float = 30.0
    """It cannot be renewed while the API server is away: leadership is given up after two thirds of this."""
    control_host: str = "0.0.0.0"  # noqa: S104 - pods dial in
    control_port: int = CONTROL_PORT
    health_port: int = HEALTH_PORT
    drain_seconds: float = 25.0
    not_running_seconds: float = 60.0
    log_level: str = "INFO"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For the client that finds the API server."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises SettingsError."""
        namespace = environment.get("SAVEPOINT_NAMESPACE", "")
        if not namespace:
            raise SettingsError("SAVEPOINT_NAMESPACE is not set: the namespace that the operator runs in")
        identity = environment.get("SAVEPOINT_POD_NAME") or environment.get("HOSTNAME", "")
        if not identity:
            raise SettingsError("SAVEPOINT_POD_NAME is not set: the name of the operator's pod")
        services = tuple(
            environment.get(variable) or default
            for variable, default in (
                ("SAVEPOINT_OPERATOR_SERVICE", "savepoint-operator"),
                ("SAVEPOINT_WEBHOOK_SERVICE", "savepoint-webhook"),
            )
        )
        return cls(
            namespace=namespace,
            identity=identity,
            services=services,
            default_store=_default_store(environment.get("SAVEPOINT_DEFAULT_STORE", "")),
            control_port=_port(environment, "SAVEPOINT_CONTROL_PORT", CONTROL_PORT),
            health_port=_port(environment, "SAVEPOINT_HEALTH_PORT", HEALTH_PORT),
            lease_seconds=_seconds(environment, "SAVEPOINT_LEASE_SECONDS", cls.lease_seconds),
            not_running_seconds=_seconds(environment, "SAVEPOINT_NOT_RUNNING_SECONDS", cls.not_running_seconds),
            environment=dict(environment),
            tls_secret=environment.get("SAVEPOINT_TLS_SECRET") or cls.tls_secret,
            ca_secret=environment.get("SAVEPOINT_CA_SECRET") or cls.ca_secret,
            master_key_secret=environment.get("SAVEPOINT_MASTER_KEY_SECRET") or cls.master_key_secret,
            webhook_configuration=environment.get("SAVEPOINT_WEBHOOK_CONFIGURATION") or "",
            log_level=_log_level(environment.get("SAVEPOINT_LOG_LEVEL") or cls.log_level),
        )


def _log_level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise SettingsError(f"SAVEPOINT_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}, not {text!r}")
    return text


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdigit() or int(text) > 65535:
        raise SettingsError(f"{name} must be a port, not {text!r}")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError as error:
        raise SettingsError(f"{name} must be a number of seconds, not {text!r}") from error
    if not 1 <= seconds <= 3600:
        raise SettingsError(f"{name} must be from 1 to 3600 seconds, not {text}")
    return seconds


def _default_store(text: str) -> DefaultStore | None:
    if not text.strip():
        return None
    form = 'must be {"name": "default", "spec": {"s3": {…}}}'
    try:
        parsed = json.loads(text)
        name, spec = parsed["name"], parsed["spec"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"SAVEPOINT_DEFAULT_STORE {form}") from error
    if not isinstance(name, str) or not name or not isinstance(spec, dict) or "s3" not in spec:
        raise SettingsError(f"SAVEPOINT_DEFAULT_STORE {form}")
    return DefaultStore(name, spec)
