"""The ports and limits that the control side is given, and the services that its sessions share. Values only."""

from dataclasses import dataclass

from savepoint_operator.control.liveness import PodLiveness
from savepoint_operator.control.registry import SessionRegistry
from savepoint_operator.control.unauthenticated import MAX_UNAUTHENTICATED, UNAUTHENTICATED_SECONDS
from savepoint_operator.lineage.service import LineageService
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.ports import PodResolver, Recorder, Stores, TokenReviewer


@dataclass(frozen=True)
class ControlPorts:
    """The ports through which the control side reaches cluster, stores and reconcile."""

    reviewer: TokenReviewer
    pod_resolver: PodResolver
    stores: Stores
    recorder: Recorder


@dataclass(frozen=True)
class ControlLimits:
    """The intervals and limits of the control side; tests shorten them."""

    poll_seconds: float = 1.0
    """Seconds between two decisions about a waiting pod."""
    answer_seconds: float = 20.0
    """Seconds after which a store that does not answer counts as unreachable."""
    linger_seconds: float = 1.5
    """Minimum seconds of a drain: pods evicted together with the operator are asked to end within this time."""
    max_unauthenticated: int = MAX_UNAUTHENTICATED
    unauthenticated_seconds: float = UNAUTHENTICATED_SECONDS


@dataclass(frozen=True)
class SessionDependencies:
    """The services that every session of the control server shares."""

    pod_resolver: PodResolver
    recorder: Recorder
    lineage: LineageService
    registry: SessionRegistry
    liveness: PodLiveness
    clocks: Clocks
