"""Kubernetes objects as the operator sees them: frozen values, parsed once in ``cluster.parse``. No I/O, no decisions.

Only what some rule or step reads is here; the rest of an object never leaves the door.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from savepoint_operator.model.views import AgentRef


class Selector(Protocol):
    """A label selector."""

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels satisfy it."""
        ...


class Everything:
    """The empty selector."""

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Always."""
        return True


class ObjectKey(NamedTuple):
    """Namespace (empty for cluster-scoped kinds) and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True)
class Meta:
    """Metadata of any object."""

    namespace: str
    name: str
    uid: str
    version: int
    """resourceVersion, comparable within one kind (Kubernetes 1.35 and newer promise the order)."""
    generation: int
    created: datetime
    deleting: bool
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    generated: bool = False
    """The API server chose its name: nobody makes it anew under the same one."""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.namespace, self.name)


@dataclass(frozen=True)
class Owner:
    """The controlling owner reference of an object."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Pod:
    """A pod that carries our label."""

    meta: Meta
    node: str
    phase: str
    owner: Owner | None
    injected: bool
    """The webhook has added its containers."""
    ready: bool = False
    disruption: str = ""
    """Why something outside ends it: the reason of its condition DisruptionTarget."""
    blocked: str = ""
    """Why one of its containers cannot start, and what to do about it; empty when none is stuck."""
    restart_policy: str = "Always"
    exited: datetime | None = None
    """When the last of its containers ended, init containers and sidecars aside; None where one has not said so."""
    deletion_asked: datetime | None = None
    """When somebody asked for its deletion; the time that Kubernetes shows is later by the grace period."""

    @property
    def live(self) -> bool:
        """Neither ended nor about to end."""
        return self.phase not in ("Succeeded", "Failed") and not self.meta.deleting


@dataclass(frozen=True)
class Workload:
    """What makes pods: Deployment, ReplicaSet, StatefulSet or Job."""

    meta: Meta
    kind: str
    replicas: int
    """Desired; of a Job its parallelism."""
    indexed: bool
    """Each of its pods is an agent of its own (StatefulSet, indexed Job)."""
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
    """Seconds; jitter lengthens each period by a random part of it, None: a tenth of the period."""

    period_seconds: int = 300
    jitter_seconds: int | None = None


@dataclass(frozen=True)
class Policy:
    """An AgentCheckpointPolicy, as far as the operator acts on it."""

    meta: Meta
    selector: Selector = field(default_factory=Everything)
    store_name: str | None = None
    exclude: tuple[str, ...] = ()
    quiesce_timeout_seconds: int = 10
    hold_seconds: int = 5
    interval: Interval | None = field(default_factory=Interval)
    """None: no checkpoints by time."""
    keep_last: int = 12
    suspend: bool = False
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class S3Spec:
    """Where a store is; Secrets are in the operator's namespace."""

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
    """An AgentCheckpointStore. ``allowed_names`` and ``allowed_selector`` None: every namespace."""

    meta: Meta
    s3: S3Spec
    default: bool = False
    allowed_names: frozenset[str] | None = None
    allowed_selector: Selector | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointObject:
    """An AgentCheckpoint. ``agent`` is in the object's namespace."""

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
        """The attempt id of a checkpoint that a user asks for: 32 hexadecimal digits that never change."""
        return self.meta.uid.replace("-", "")


@dataclass(frozen=True)
class RestoreObject:
    """An AgentRestore. ``agent`` is None for a rollback whose checkpoint has not been looked up yet."""

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
        return AgentRef(self.meta.namespace, self.meta.name)
