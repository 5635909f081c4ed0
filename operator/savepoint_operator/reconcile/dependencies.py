"""The values that the process supplies to reconcile, and those that its steps share. ``assembly`` creates them."""

from collections.abc import Callable
from dataclasses import dataclass

from savepoint.storage import ObjectStore
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import S3Config

from savepoint_operator.cluster.events import Events
from savepoint_operator.metrics import Metrics
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.reconcile.status_writer import StatusWriter

StoreBuilder = Callable[[S3Config], ObjectStore]
"""Opens a store; it sends no request."""


@dataclass(frozen=True)
class ReconcileDependencies:
    """The adapters, clocks, randomness and settings that the process supplies."""

    cluster: ClusterClient
    events: Events
    metrics: Metrics
    clocks: Clocks
    random_bytes: Callable[[int], bytes]
    random_fraction: Callable[[], float]
    """Return a number from 0 to 1."""
    cluster_id: str
    """UID of namespace kube-system: the owner that is recorded in each store."""
    namespace: str
    """The operator's own namespace, which holds the Secrets."""
    master_key_secret: str
    not_running_seconds: float
    """Time that a requested checkpoint waits for a sidecar before it fails with AgentNotRunning."""
    build_store: StoreBuilder = S3Store


@dataclass(frozen=True)
class StepDependencies:
    """The values that all reconcile steps share."""

    cluster: ClusterClient
    cache: ClusterCache
    events: Events
    metrics: Metrics
    status_writer: StatusWriter
    clocks: Clocks
    random_bytes: Callable[[int], bytes]
    leader_since: float
    """Monotonic seconds at which this leader began."""
