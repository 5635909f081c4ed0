"""The webhook process's configuration, read from the environment once. Nothing else of the process reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from savepoint.contract.names import HEALTH_PORT, WEBHOOK_PORT

PULL_POLICIES = ("Always", "IfNotPresent", "Never")


class SettingsError(ValueError):
    """A variable is missing or wrong; the message names it and says what it should be."""


@dataclass(frozen=True)
class WebhookSettings:
    """tls_directory holds tls.crt, tls.key and ca.crt, as a mounted Secret does."""

    sidecar_image: str
    control_url: str
    tls_directory: Path
    pull_policy: str = "IfNotPresent"
    port: int = WEBHOOK_PORT
    health_port: int = HEALTH_PORT
    log_level: str = "INFO"
    certificate_poll_seconds: float = 5.0
    drain_seconds: float = 5.0
    """How long requests are still answered after SIGTERM, while the Service forgets this pod."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "WebhookSettings":
        """Raises SettingsError."""
        url = _required(environment, "SAVEPOINT_CONTROL_URL", "the operator's control URL, wss://…")
        if not url.startswith("wss://"):
            raise SettingsError(f"SAVEPOINT_CONTROL_URL must begin with wss://, not {url!r}")
        pull_policy = environment.get("SAVEPOINT_SIDECAR_PULL_POLICY") or "IfNotPresent"
        if pull_policy not in PULL_POLICIES:
            raise SettingsError(f"SAVEPOINT_SIDECAR_PULL_POLICY must be one of {', '.join(PULL_POLICIES)}")
        return cls(
            sidecar_image=_required(environment, "SAVEPOINT_SIDECAR_IMAGE", "the sidecar's image"),
            control_url=url,
            tls_directory=Path(_required(environment, "SAVEPOINT_TLS_DIRECTORY", "the folder of the TLS Secret")),
            pull_policy=pull_policy,
            port=_port(environment, "SAVEPOINT_WEBHOOK_PORT", WEBHOOK_PORT),
            health_port=_port(environment, "SAVEPOINT_HEALTH_PORT", HEALTH_PORT),
            log_level=environment.get("SAVEPOINT_LOG_LEVEL") or "INFO",
        )


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise SettingsError(f"{name} must be a port number, not {text!r}")
    return int(text)


def _required(environment: Mapping[str, str], name: str, what: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set: {what}")
    return value
