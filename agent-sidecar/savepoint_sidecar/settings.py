"""Configuration of a sidecar or init container, read from its environment once and validated.

Only ``probe``, which must start fast, reads two variables by itself.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from savepoint.contract import names
from savepoint.contract.environment import SettingsError, choice, parse_integer, required
from savepoint.contract.vocabulary import UidSource

from savepoint_sidecar.files.roots import Root

DEFAULT_GRACE_SECONDS: Final = 30
ENV_FAILPOINT: Final = "SAVEPOINT_FAILPOINT"
ENV_LOG_LEVEL: Final = "SAVEPOINT_LOG_LEVEL"
TERMINATION_LOG: Final = Path("/dev/termination-log")
SET_BY_WEBHOOK: Final = "the webhook sets it in this container"


@dataclass(frozen=True)
class Settings:
    """One injected container's configuration."""

    control_url: str
    control_ca: str = field(repr=False)
    """CA certificates in PEM."""
    pod_name: str
    pod_namespace: str
    pod_uid: str
    node: str
    grace_seconds: int
    """The pod's whole termination grace period."""
    roots: tuple[Root, ...]
    uid_source: UidSource = UidSource.NONE
    """The source of this container's uid."""
    token_path: Path = Path(names.TOKEN_PATH)
    socket_path: Path = Path(names.SOCKET_PATH)
    stage: Path = Path(names.STAGE_DIRECTORY)
    log_level: str = "INFO"
    api_server: tuple[str, int] | None = None
    """Host and port of the cluster's API server: a response from it proves that this node is not cut off."""
    version: str = ""
    """Version of this distribution."""


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment that the webhook writes. SettingsError if a variable is missing or invalid."""
    return Settings(
        control_url=required(environment, names.ENV_CONTROL_URL, SET_BY_WEBHOOK),
        control_ca=required(environment, names.ENV_CONTROL_CA, SET_BY_WEBHOOK),
        pod_name=environment.get(names.ENV_POD_NAME, ""),
        pod_namespace=environment.get(names.ENV_POD_NAMESPACE, ""),
        pod_uid=required(environment, names.ENV_POD_UID, SET_BY_WEBHOOK),
        node=environment.get(names.ENV_NODE_NAME, ""),
        grace_seconds=parse_integer(
            names.ENV_GRACE_SECONDS, environment.get(names.ENV_GRACE_SECONDS, str(DEFAULT_GRACE_SECONDS))
        ),
        roots=_roots(environment.get(names.ENV_ROOTS, "[]")),
        uid_source=UidSource(choice(environment, names.ENV_UID_SOURCE, UidSource.NONE, tuple(UidSource))),
        token_path=Path(environment.get("SAVEPOINT_TOKEN", names.TOKEN_PATH)),
        socket_path=Path(environment.get(names.ENV_SOCKET, names.SOCKET_PATH)),
        stage=Path(environment.get(names.ENV_STAGE, names.STAGE_DIRECTORY)),
        log_level=environment.get(ENV_LOG_LEVEL, "INFO"),
        api_server=_api_server(environment),
        version=metadata.version("savepoint-agents"),
    )


def failpoint_of(environment: Mapping[str, str] = os.environ) -> str:
    """Return the failpoint that a test has set, or an empty string."""
    return environment.get(ENV_FAILPOINT, "")


def log_level_of(default: str = "INFO", environment: Mapping[str, str] = os.environ) -> str:
    """Return the configured log level."""
    return environment.get(ENV_LOG_LEVEL, default)


def _api_server(environment: Mapping[str, str]) -> tuple[str, int] | None:
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    return (host, int(port)) if host and port.isdigit() else None


def _roots(text: str) -> tuple[Root, ...]:
    try:
        raw: Any = json.loads(text)
        roots = tuple(
            Root(str(item["name"]), str(item["mountPath"]), Path(str(item["path"])), item.get("persistent") is True)
            for item in raw
        )
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{names.ENV_ROOTS} is not a list of state roots: {error}") from error
    if len({root.name for root in roots}) != len(roots):
        raise SettingsError(f"{names.ENV_ROOTS} names a state root twice")
    return roots
