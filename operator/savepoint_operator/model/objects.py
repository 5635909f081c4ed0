"""Kubernetes objects as the operator sees them: frozen values, parsed once in ``cluster.parse``. No I/O, no decisions.

They hold only the fields that a rule or step reads; the rest of an object never leaves ``cluster``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from savepoint.contract.shrinkage import DEFAULT_PERCENT
from savepoint.contract.vocabulary import ChangeDetection, OnContainerRestart, OnUnknownFiles
from savepoint.repository.history.retention import RetentionRules

from savepoint_operator.model.selector import LabelSelector
from savepoint_operator.model.views import AgentRef


class ObjectKey(NamedTuple):
    """Namespace (empty for cluster-scoped kinds) and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True)
class Meta:
    """The metadata of any object."""

    namespace: str
    name: str
    uid: str
    version: int
    """resourceVersion, comparable within one kind (Kubernetes 1.35 and newer guarantee the order)."""
    generation: int
    created: datetime
    deleting: bool
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    generated: bool = False
    """The API server generated its name, so no owner recreates it under the same one."""

    @property
    def key(self) -> ObjectKey:
        """The object's namespace and name."""
        return ObjectKey(self.namespace, self.name)


@dataclass(frozen=True)
class Owner:
    """The controlling owner reference of an object."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class ContainerExit:
    """A regular container that was restarted in its pod: how it ended last, and since when it runs again."""

    name: str
    restarts: int
    exit_code: int
    reason: str = ""
    """The kubelet's word for the last exit, such as OOMKilled."""
    running_since: datetime | None = None
    """None while it does not run."""


@dataclass(frozen=True)
class Pod:
    """A pod that carries the agent label."""

    meta: Meta
    node: str
    phase: str
    owner: Owner | None
    injected: bool
    """The webhook has added its containers."""
    ready: bool = False
    disruption: str = ""
    """The reason of its condition DisruptionTarget, if something outside the pod ends it."""
    blocked: str = ""
    """Cause and remedy if one of its containers cannot start; empty if none is blocked."""
    restart_policy: str = "Always"
    exited: datetime | None = None
    """Time at which the last of its regular containers ended; None while one of them has no exit time."""
    deletion_requested: datetime | None = None
    """Time at which its deletion was requested; deletionTimestamp is later by the grace period."""
    exits: tuple[ContainerExit, ...] = ()
    """Its regular containers that were restarted."""

    @property
    def live(self) -> bool:
        """True if it has neither ended nor is being deleted."""
        return self.phase not in ("Succeeded", "Failed") and not self.meta.deleting


@dataclass(frozen=True)
class Workload:
    """A controller of pods: Deployment, ReplicaSet, StatefulSet or Job."""

    meta: Meta
    kind: str
    replicas: int
    """Desired replicas; for a Job its parallelism."""
    indexed: bool
    """Each of its pods is a separate agent (StatefulSet, indexed Job)."""
    rolling: bool
    """A Deployment that starts the successor before the predecessor ends."""
    owner: Owner | None
    template_labelled: bool


@dataclass(frozen=True)
class Node:
    """A node; ``lost``: NotReady, or tainted out-of-service."""

    meta: Meta
    lost: bool


@dataclass(frozen=True)
class Interval:
    """The interval trigger, in seconds."""

    period_seconds: int = 300
    jitter_seconds: int | None = None
    """Each period is lengthened by a random part of this; None: of a tenth of the period."""


@dataclass(frozen=True)
class StatePath:
    """A path in the agent's container that is state but not a volume."""

    mount_path: str
    size_limit: str | int | None = None


@dataclass(frozen=True)
class Policy:
    """An AgentCheckpointPolicy. The webhook reads what shapes a pod, the operator the rest."""

    meta: Meta
    selector: LabelSelector = field(default_factory=LabelSelector)
    store_name: str | None = None
    exclude: tuple[str, ...] = ()
    quiesce_timeout_seconds: int = 10
    hold_seconds: int = 5
    interval: Interval | None = field(default_factory=Interval)
    """None: no scheduled checkpoints."""
    retention: RetentionRules = field(default_factory=RetentionRules)
    shrink_percent: int = DEFAULT_PERCENT
    change_detection: str = ChangeDetection.AUTO
    on_container_restart: str = OnContainerRestart.KEEP_LOCAL
    on_unknown_files: str = OnUnknownFiles.REFUSE
    suspend: bool = False
    container_name: str | None = None
    state_volumes: tuple[str, ...] | None = None
    """Volumes that are state; None: every writable one."""
    state_paths: tuple[StatePath, ...] = ()
    state_moved: tuple[tuple[str, str], ...] = ()
    """Mount paths that roots had before, and those that they have now."""
    state_dropped: tuple[str, ...] = ()
    """Mount paths of roots that a start may leave out."""
    stage_size_limit: str | int | None = None
    stage_medium: str = ""
    """Value of emptyDir.medium."""
    resources: Mapping[str, Any] | None = None
    run_as_user: int | None = None
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The policy's name, which is unique in its namespace."""
        return self.meta.name


@dataclass(frozen=True)
class S3Spec:
    """The location of a store; its Secrets are in the operator's namespace."""

    endpoint: str
    bucket: str
    pod_endpoint: str = ""
    prefix: str = ""
    region: str = "us-east-1"
    addressing: str = "Path"
    credentials_secret: str = ""
    ca_secret: str = ""


@dataclass(frozen=True)
class Store:
    """An AgentCheckpointStore. With ``allowed_names`` and ``allowed_selector`` None every namespace may use it."""

    meta: Meta
    s3: S3Spec
    default: bool = False
    allowed_names: frozenset[str] | None = None
    allowed_selector: LabelSelector | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointObject:
    """An AgentCheckpoint; its agent is in the same namespace."""

    meta: Meta
    agent: AgentRef
    hold: bool
    attempt: str
    reason: str
    ready: bool
    number: int
    sequence: int
    trigger: str
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_attempt(self) -> str:
        """The attempt id of a user-created checkpoint: its UID as 32 hexadecimal digits, which never changes."""
        return self.meta.uid.replace("-", "")


@dataclass(frozen=True)
class RestoreObject:
    """An AgentRestore. ``agent_name`` is empty for a rollback whose checkpoint has not been looked up yet."""

    meta: Meta
    mode: str
    checkpoint_name: str
    agent_name: str
    reason: str
    finished: bool
    succeeded: bool
    epoch: int
    pod_uid: str
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_attempt(self) -> str:
        """The attempt id of the rollback or reset."""
        return self.meta.uid.replace("-", "")


@dataclass(frozen=True)
class AgentObject:
    """A ProtectedAgent."""

    meta: Meta
    reason: str
    epoch: int
    pin: tuple[int, str] | None
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def agent(self) -> AgentRef:
        """The agent that it describes."""
        return AgentRef(self.meta.namespace, self.meta.name)
