"""The operator's observations, as frozen values. No I/O, no decisions; ``rules`` decides over these.

Kubernetes dicts are parsed into these once, in ``cluster``; nothing else reads raw objects.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from savepoint.contract.capture_report import CaptureReport
from savepoint.contract.control_protocol import ComponentSummary, PolicyTerms
from savepoint.contract.shrinkage import Shrinkage


class AgentRef(NamedTuple):
    """The namespace and name of one agent: the unit of fencing, of the repository and of the operator's work."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class PodIdentity:
    """The pod that a token proves its bearer to be (from TokenReview's extra fields, never from a message)."""

    namespace: str
    name: str
    uid: str


class PodState(StrEnum):
    """The state of a predecessor's pod, as the API server reports it."""

    RUNNING = "Running"
    TERMINAL = "Terminal"  # phase Succeeded or Failed, as its kubelet reported
    GONE = "Gone"  # there is no pod with this UID


class NodeState(StrEnum):
    """The state of the node that a predecessor ran on."""

    READY = "Ready"
    LOST = "Lost"  # NotReady, deleted, or tainted out-of-service


@dataclass(frozen=True)
class PredecessorState:
    """The predecessor's pod and node, observed together."""

    pod: PodState
    node: NodeState
    run_ended: bool = False
    """The pod exited with 0, will not be restarted, and so ended its run."""


@dataclass(frozen=True)
class Contact:
    """A pod's control connections as this leader knows them, by its own monotonic clock."""

    connected: bool = False
    closed_at: float | None = None
    """Time at which its last connection closed; None while it is connected, or if it never was."""
    released: bool = False
    pod_name: str = ""


@dataclass(frozen=True)
class ClaimedRoot:
    """A state root that lies on a PersistentVolumeClaim."""

    name: str
    """The root's name, as the webhook chose it."""
    volume: str
    claim: str


@dataclass(frozen=True)
class Incarnation:
    """One pod of an agent, resolved from owner references, policies and stores."""

    agent: AgentRef
    pod: PodIdentity
    node: str
    config_hash: str
    policy: PolicyTerms
    policy_name: str | None
    store_name: str
    workload: str = ""
    """The pod's topmost owner as "Kind/name"; empty if it has none."""
    shared: tuple[ClaimedRoot, ...] = ()
    """Roots that other pods may write too and that no policy lists as state; the pod leaves them alone."""


@dataclass(frozen=True)
class Refusal:
    """A refused request and its cause. ``reason`` has a page in docs/reasons/."""

    reason: str
    message: str
    retry: bool = False
    """The cause is transient: the pod waits and asks again."""
    incarnation: Incarnation | None = None
    """The refused pod, if it is known which agent it claims to be; its AgentRestore then shows the refusal."""


@dataclass(frozen=True)
class CheckpointName:
    """The number and name reserved for a checkpoint before it is committed."""

    number: int
    name: str


@dataclass(frozen=True)
class Contents:
    """The contents of a committed checkpoint, read from its manifest; sizes in bytes."""

    taken_at: str
    """Time at which the state was captured, in the format of canonical.time_text."""
    consistency: str
    logical_bytes: int
    stored_bytes: int
    uploaded_bytes: int
    components: tuple[ComponentSummary, ...] = ()
    step: str | None = None
    open_operations: int = 0
    uncertain_operations: tuple[str, ...] = ()
    """The first of them."""
    uncertain_count: int = 0
    """The count of all of them, where not all are listed."""
    shrinkages: tuple[Shrinkage, ...] = ()
    capture: CaptureReport | None = None


@dataclass(frozen=True)
class SessionView:
    """One live control connection of a sidecar."""

    agent: AgentRef
    pod: PodIdentity
    node: str
    epoch: int
    connected_at: datetime
    sdk_session: bool
    detail: str
    sidecar_version: str
    attempt: str | None
    """The attempt in flight."""
