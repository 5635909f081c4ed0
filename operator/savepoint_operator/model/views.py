"""What the operator has observed, as frozen values. No I/O, no decisions; ``rules`` decide over these.

Dicts from Kubernetes are parsed into these once, in ``cluster``; nothing else reads raw objects.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from savepoint.contract.control_protocol import ComponentSummary, PolicyTerms


class AgentRef(NamedTuple):
    """One agent: the unit of fencing, of the repository and of work in the operator."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class PodIdentity:
    """Who a token proves its bearer to be (TokenReview's extra fields, never a message)."""

    namespace: str
    name: str
    uid: str


class PodStanding(StrEnum):
    """What the cluster says of an incarnation's pod."""

    RUNNING = "Running"
    TERMINAL = "Terminal"  # Succeeded or Failed, as its kubelet reported
    GONE = "Gone"  # no pod of this uid


class NodeStanding(StrEnum):
    """What the cluster says of the node an incarnation ran on."""

    READY = "Ready"
    LOST = "Lost"  # NotReady, deleted, or tainted out-of-service


@dataclass(frozen=True)
class Standing:
    """The predecessor's pod and node, observed together."""

    pod: PodStanding
    node: NodeStanding
    run_ended: bool = False
    """The pod has exited with 0 for good, and so ended its run."""


@dataclass(frozen=True)
class Contact:
    """What this leader has heard of a pod over the control channel, by its own monotonic clock."""

    connected: bool = False
    closed_at: float | None = None
    """When its last connection ended; None while connected, or when it never was."""
    released: bool = False
    pod_name: str = ""


@dataclass(frozen=True)
class ClaimedRoot:
    """A folder of state that lies on a PersistentVolumeClaim."""

    name: str
    """Of the folder, as the webhook named it."""
    volume: str
    claim: str


@dataclass(frozen=True)
class Incarnation:
    """What the operator needs to know of the pod that asks: resolved from owner references, policies and stores."""

    agent: AgentRef
    pod: PodIdentity
    node: str
    config_hash: str
    policy: PolicyTerms
    policy_name: str | None
    store_name: str
    shared: tuple[ClaimedRoot, ...] = ()
    """What other pods may write as well, and nobody has chosen as state: the pod leaves it alone."""


@dataclass(frozen=True)
class Refusal:
    """Why an ask is refused (reason is a page in docs/reasons/); ``retry``: it may pass, the pod should wait inside."""

    reason: str
    message: str
    retry: bool = False
    who: Incarnation | None = None
    """The pod that asked, where it is known which agent it means to be: its refusal is told like any other start."""


@dataclass(frozen=True)
class CheckpointName:
    """What a checkpoint is called before it is committed."""

    number: int
    name: str


@dataclass(frozen=True)
class Contents:
    """What a committed checkpoint holds, as its manifest says it; sizes in bytes."""

    cut: str
    """When the state was taken, as canonical.time_text."""
    consistency: str
    logical_bytes: int
    stored_bytes: int
    uploaded_bytes: int
    components: tuple[ComponentSummary, ...] = ()
    step: str | None = None
    open_operations: int = 0
    uncertain_operations: tuple[str, ...] = ()


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
    attempt: str | None  # in flight
