"""The configuration of the webhook process, read from the environment once. No other module reads the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from savepoint.contract.environment import SettingsError, choice, integer, required, text
from savepoint.contract.names import HEALTH_PORT, WEBHOOK_PORT

MAX_PORT = 65535
PULL_POLICIES = ("Always", "IfNotPresent", "Never")


@dataclass(frozen=True)
class WebhookSettings:
    """The webhook's settings. ``tls_directory`` holds tls.crt, tls.key and ca.crt, as a mounted Secret does."""

    sidecar_image: str
    control_url: str
    tls_directory: Path
    pull_policy: str = "IfNotPresent"
    port: int = WEBHOOK_PORT
    health_port: int = HEALTH_PORT
    log_level: str = "INFO"
    certificate_poll_seconds: float = 5.0
    drain_seconds: float = 5.0
    """Seconds for which requests are still answered after SIGTERM, until the Service no longer routes to this pod."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "WebhookSettings":
        """Return the settings in the environment. Raises SettingsError."""
        url = required(environment, "SAVEPOINT_CONTROL_URL", "the operator's control URL, wss://…")
        if not url.startswith("wss://"):
            raise SettingsError(f"SAVEPOINT_CONTROL_URL must begin with wss://, not {url!r}")
        return cls(
            sidecar_image=required(environment, "SAVEPOINT_SIDECAR_IMAGE", "the sidecar's image"),
            control_url=url,
            tls_directory=Path(required(environment, "SAVEPOINT_TLS_DIRECTORY", "the directory of the TLS Secret")),
            pull_policy=choice(environment, "SAVEPOINT_SIDECAR_PULL_POLICY", "IfNotPresent", PULL_POLICIES),
            port=integer(environment, "SAVEPOINT_WEBHOOK_PORT", WEBHOOK_PORT, minimum=1, maximum=MAX_PORT),
            health_port=integer(environment, "SAVEPOINT_HEALTH_PORT", HEALTH_PORT, minimum=1, maximum=MAX_PORT),
            log_level=text(environment, "SAVEPOINT_LOG_LEVEL", "INFO"),
        )
