"""The seams inside the operator, each a Protocol declared for its consumer. No implementation here.

``control`` (connections, grants, commits) knows the cluster only through ``Directory``, ``Stores`` and
``TokenReviewer``, and tells what happened through ``Recorder``. ``reconcile`` orders work through ``Orders``. All
methods run on the operator's one event loop; blocking store calls are made in threads by whoever makes them.
"""

from dataclasses import dataclass
from typing import Protocol

from savepoint.contract.control_protocol import Offer, Outcome, Progress, RequestCheckpoint, Result, Wait
from savepoint.repository.format.commit import Head
from savepoint.repository.format.keys import MasterKey
from savepoint.storage import ObjectStore

from .views import (
    AgentRef,
    CheckpointName,
    Contact,
    Contents,
    Incarnation,
    PodIdentity,
    Refusal,
    SessionView,
    Standing,
)


class TokenReviewer(Protocol):
    """Door to TokenReview (cluster)."""

    async def review(self, token: str) -> PodIdentity | None:
        """The pod a projected token with our audience proves, None when it proves nothing. Raises Unavailable."""
        ...


class UrlSigner(Protocol):
    """Presigns for the address that pods reach (savepoint.storage.presign.Presigner)."""

    def presign_put(self, key: str, expires_seconds: int) -> str: ...
    def presign_get(self, key: str, expires_seconds: int) -> str: ...


@dataclass(frozen=True)
class OpenStore:
    """A Ready store, opened by the operator: keys are relative to the store's prefix."""

    name: str
    objects: ObjectStore
    signer: UrlSigner
    master: MasterKey
    pod_ca_pem: str = ""


class Stores(Protocol):
    """Opens stores by AgentCheckpointStore name (reconcile)."""

    async def open(self, name: str) -> OpenStore:
        """Raises StoreUnavailable, StoreDenied, StoreMisconfigured, KeyMismatch or NotAdopted when it is not Ready."""
        ...


class PodResolver(Protocol):
    """What the cluster says of pods and agents (cluster + rules/identity)."""

    async def incarnation(self, pod: PodIdentity) -> Incarnation | Refusal:
        """Who the pod is. Refusal: not opted in, ambiguous (two pods or more replicas for one name), no such store…"""
        ...

    async def standing(self, agent: AgentRef, pod_uid: str, node: str) -> Standing:
        """The pod and node of an earlier incarnation, freshly read where that decides a grant."""
        ...

    async def released(self, agent: AgentRef, pod_uid: str) -> bool:
        """Whether the pod told this leader, or one before it, that it has ended in good order."""
        ...

    async def going(self, pod: PodIdentity) -> bool:
        """Whether the pod has been told to end and has not ended yet, as far as it was watched."""
        ...

    async def pinned(self, agent: AgentRef) -> tuple[int, str] | None:
        """(sequence, record digest) pinned in ProtectedAgent.status, None when there is no object."""
        ...


class Liveness(Protocol):
    """What this leader hears of pods (control/presence)."""

    @property
    def leader_since(self) -> float:
        """Monotonic seconds at which this leader began to listen."""
        ...

    def contact(self, pod_uid: str) -> Contact:
        """The pod's connections."""
        ...

    def returned(self, pod: PodIdentity) -> None:
        """The pod holds the newest epoch and works again: an earlier release counts no more."""
        ...


class Recorder(Protocol):
    """Told what happened; writes objects, status, Events and metrics (reconcile). Must not raise for API trouble:
    it retries by itself, since the store already holds the truth."""

    async def waiting(self, who: Incarnation, wait: Wait) -> None: ...
    async def granted(self, who: Incarnation, head: Head, restores: str | None) -> None:
        """The pod holds the epoch of ``head``; ``restores`` is the checkpoint's name it will restore, None: fresh.

        Told again when the same pod asks again (same epoch, maybe a newer head): idempotent by pod UID and epoch.
        """
        ...

    async def restored(self, who: Incarnation, outcome: Outcome) -> None: ...
    async def restore_progress(self, who: Incarnation, progress: Progress) -> None: ...
    async def connected(self, session: SessionView, who: Incarnation) -> None: ...
    async def disconnected(self, agent: AgentRef, pod: PodIdentity) -> None: ...
    async def requested(self, agent: AgentRef, request: RequestCheckpoint) -> str | Refusal:
        """The pod asks for a checkpoint: the attempt id (32 hex) to use, or why not."""
        ...

    async def progressed(self, agent: AgentRef, progress: Progress) -> None: ...
    async def delayed(self, agent: AgentRef, attempt: str, why: str) -> None:
        """All of the attempt is stored, and its commit is tried again until its deadline. May be told many times."""
        ...

    async def name_for(self, agent: AgentRef, offer: Offer, head: Head) -> CheckpointName:
        """Before a commit: what this attempt is called (its AgentCheckpoint's name, made now if there is none)."""
        ...

    async def committed(
        self, agent: AgentRef, offer: Offer | None, head: Head, store: str, contents: Contents | None = None
    ) -> None:
        """A record of kind checkpoint (offer None: adopted from a deferred commit) or completed (offer None) exists.

        ``contents``: what it holds, where no offer says so and its manifest could be read.
        May come again for the same record, also when the chain is further on: pin only what is newer than the pin.
        """
        ...

    async def failed(self, agent: AgentRef, result: Result) -> None: ...
    async def unchanged(self, agent: AgentRef, result: Result, head: Head | None) -> None:
        """Nothing changed: only the recovery point advances."""
        ...

    async def released(self, agent: AgentRef, pod: PodIdentity, completed: bool, message: str) -> None: ...


class Orders(Protocol):
    """What reconcile asks of the control side."""

    def session(self, agent: AgentRef) -> SessionView | None:
        """The live sidecar connection that holds the agent's epoch, if any."""
        ...

    async def checkpoint(
        self, agent: AgentRef, attempt: str, trigger: str, deadline_seconds: int, after: str = "Resume"
    ) -> None:
        """Send a checkpoint order; idempotent by attempt. ``after``: Resume | Terminate.

        Raises Unavailable (no session) or Refused with code AttemptInFlight (another attempt is under way).
        """
        ...

    async def rollback(self, agent: AgentRef, attempt: str, to_sequence: int | None, store: str) -> Head:
        """Append a rollback record (None: reset) under the current epoch; idempotent by attempt. Stops the session."""
        ...

    async def end_run(self, agent: AgentRef, pod_uid: str, store: str) -> Head | None:
        """End the run of a pod that has exited with 0 for good, if it holds the newest epoch; the newest record.

        Idempotent. Unavailable while its connection is open or a commit of its is under way: ask again.
        """
        ...

    async def collect(self, agent: AgentRef, store: str, keep_sequences: frozenset[int]) -> int:
        """Collect what no kept record needs; bytes freed. Refused while a checkpoint or restore is in flight."""
        ...

    async def head(self, agent: AgentRef, store: str) -> Head | None:
        """The newest record, read from the store."""
        ...
