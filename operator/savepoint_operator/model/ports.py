"""The ports between the operator's packages, each a Protocol declared for its consumer. No implementations.

``control`` (connections, grants, commits) accesses the cluster only through ``PodResolver``, ``Stores`` and
``TokenReviewer``, and reports events through ``Recorder``. ``reconcile`` orders work through ``Orders``. All methods
run on the operator's one event loop; the implementation runs blocking store calls in threads.
"""

from dataclasses import dataclass
from typing import Protocol

from savepoint.contract.control_protocol import Offer, Outcome, Progress, RequestCheckpoint, Result, Wait
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.history.collect import CollectReport
from savepoint.storage import ObjectStore

from .views import (
    AgentRef,
    CheckpointName,
    Contact,
    Contents,
    Incarnation,
    PodIdentity,
    PredecessorState,
    Refusal,
    SessionView,
)


class TokenReviewer(Protocol):
    """Reviews bearer tokens with the API server (``cluster``)."""

    async def review(self, token: str) -> PodIdentity | None:
        """Return the pod that a projected token with Savepoint's audience proves, or None. Raises Unavailable."""
        ...


class UrlSigner(Protocol):
    """Presigns URLs for the address at which pods reach the store (``savepoint.storage.signature.Presigner``)."""

    def presign_put(self, key: str, expires_seconds: int) -> str:
        """Return a URL that writes the key."""
        ...

    def presign_get(self, key: str, expires_seconds: int) -> str:
        """Return a URL that reads the key."""
        ...


@dataclass(frozen=True)
class OpenStore:
    """A Ready store that the operator has opened; keys are relative to the store's prefix."""

    name: str
    objects: ObjectStore
    signer: UrlSigner
    master: MasterKey
    pod_ca_pem: str = ""


class Stores(Protocol):
    """Opens stores by the name of their AgentCheckpointStore (``reconcile``)."""

    async def open(self, name: str) -> OpenStore:
        """Return the open store; the same object until its configuration or credentials change.

        Raises StoreUnavailable, StoreDenied, StoreMisconfigured, KeyMismatch or NotAdopted when it is not Ready.
        """
        ...


class PodResolver(Protocol):
    """Answers what the cluster knows of pods and agents (``cluster`` and ``rules.identity``)."""

    async def incarnation(self, pod: PodIdentity) -> Incarnation | Refusal:
        """Return which agent the pod is, or why it is refused: not opted in, ambiguous, without a store, …

        Raises Unavailable.
        """
        ...

    async def predecessor_state(self, agent: AgentRef, pod_uid: str, node: str) -> PredecessorState:
        """Return the state of an earlier pod and its node, freshly read since a grant depends on it."""
        ...

    async def released(self, agent: AgentRef, pod_uid: str) -> bool:
        """Return whether the pod reported to this or an earlier leader that it ended cleanly."""
        ...

    async def terminating(self, pod: PodIdentity) -> bool:
        """Return whether the pod is being deleted and still exists, as far as the watch knows."""
        ...

    async def pinned(self, agent: AgentRef) -> tuple[int, str] | None:
        """Return the (sequence, record digest) pinned in ProtectedAgent.status, or None if there is no object."""
        ...


class Liveness(Protocol):
    """Reports which pods are connected to this leader (``control.liveness``)."""

    @property
    def leader_since(self) -> float:
        """Monotonic seconds at which this leader began to accept connections."""
        ...

    def contact(self, pod_uid: str) -> Contact:
        """Return what is known of the pod's connections."""
        ...

    def reactivated(self, pod: PodIdentity) -> None:
        """Note that the pod holds the newest epoch and works again: discard its earlier release."""
        ...


class Recorder(Protocol):
    """Records events as objects, status, Events and metrics (``reconcile``).

    No method raises if the API server cannot be reached: the recorder retries on its own, since the commit chain in
    the store is authoritative.
    """

    async def waiting(self, incarnation: Incarnation, wait: Wait) -> None:
        """Record that the pod waits for its epoch, and why."""
        ...

    async def granted(self, incarnation: Incarnation, head: ChainRecord, restores: str | None) -> None:
        """Record that the pod holds the epoch of ``head`` and restores the named checkpoint (None: starts fresh).

        Called again when the same pod requests its epoch again (same epoch, possibly a newer head). Idempotent by pod
        UID and epoch.
        """
        ...

    async def restore_ended(self, incarnation: Incarnation, outcome: Outcome) -> None:
        """Record the outcome of the pod's restore, whether it succeeded or failed."""
        ...

    async def restore_progressed(self, incarnation: Incarnation, progress: Progress) -> None:
        """Record how far the pod's restore has got."""
        ...

    async def connected(self, session: SessionView, incarnation: Incarnation) -> None:
        """Record that the agent's sidecar is connected and holds its epoch."""
        ...

    async def disconnected(self, agent: AgentRef, pod: PodIdentity) -> None:
        """Record that the agent's sidecar has lost its connection."""
        ...

    async def requested(self, agent: AgentRef, request: RequestCheckpoint) -> str | Refusal:
        """Record that the pod requests a checkpoint; return the attempt id (32 hex) to use, or why not."""
        ...

    async def progressed(self, agent: AgentRef, progress: Progress) -> None:
        """Record how far an attempt has got."""
        ...

    async def delayed(self, agent: AgentRef, attempt: str, cause: str) -> None:
        """Record that the attempt is fully stored and its commit is being retried. May be called many times."""
        ...

    async def name_for(self, agent: AgentRef, offer: Offer, head: ChainRecord) -> CheckpointName:
        """Return the name under which the attempt is committed: that of its AgentCheckpoint, created if missing.

        Raises Unavailable.
        """
        ...

    async def committed(
        self, agent: AgentRef, offer: Offer | None, head: ChainRecord, store: str, contents: Contents | None = None
    ) -> None:
        """Record a commit record of kind checkpoint or completed.

        ``offer`` is None for a completed run and for a checkpoint committed from a pending object; ``contents`` then
        describes the checkpoint, if its manifest could be read. May be called again for the same record, also after
        the chain has advanced: pin only what is newer than the pin.
        """
        ...

    async def failed(self, agent: AgentRef, result: Result) -> None:
        """Record that an attempt failed."""
        ...

    async def unchanged(self, agent: AgentRef, result: Result, head: ChainRecord | None) -> None:
        """Record that nothing had changed: only the recovery point advances."""
        ...

    async def released(self, agent: AgentRef, pod: PodIdentity, completed: bool, message: str) -> None:
        """Record that the pod released its epoch; ``completed``: it ended the run."""
        ...


class Orders(Protocol):
    """Accepts the work that ``reconcile`` orders from ``control``."""

    def session(self, agent: AgentRef) -> SessionView | None:
        """Return the live sidecar connection that holds the agent's epoch, if any."""
        ...

    async def checkpoint(
        self, agent: AgentRef, attempt: str, trigger: str, deadline_seconds: int, after: str = "Resume"
    ) -> None:
        """Order a checkpoint; idempotent by attempt. ``after``: Resume | Terminate.

        Raises Unavailable (no session) or Refused with code AttemptInFlight (another attempt is in flight).
        """
        ...

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> ChainRecord:
        """Append a rollback record (None: reset) under the current epoch and stop the session; idempotent by attempt.

        Returns the rollback's record.
        """
        ...

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> ChainRecord | None:
        """End the run of a pod that exited with 0, if it holds the newest epoch. Return the newest record.

        Idempotent. Raises Unavailable while the pod's connection is open or a commit of its attempt is in progress.
        """
        ...

    async def collect(self, agent: AgentRef, store: str, keep_sequences: frozenset[int]) -> CollectReport:
        """Delete objects that no kept record needs and return the bytes freed.

        Raises Refused while a checkpoint or restore is in flight.
        """
        ...

    async def head(self, agent: AgentRef, store: str) -> ChainRecord | None:
        """Return the newest record, read from the store."""
        ...
