"""The interface to the authority: it identifies the sidecar, orders checkpoints and commits them.

Implementations: ``control_client.ControlClient`` connects to the operator, ``local.LocalAuthority`` uses a directory
store, ``tests.fakes.authority.FakeAuthority`` is controlled by a test.
"""

from collections.abc import AsyncIterator
from typing import Protocol, TypeAlias

from savepoint.contract.control_protocol import (
    Checkpoint,
    CheckpointRef,
    Offer,
    Progress,
    Refused,
    Released,
    RequestCheckpoint,
    Result,
    Stop,
    Welcome,
)
from savepoint.storage import BlobReader, BlobWriter

Order: TypeAlias = Checkpoint | Refused | Stop | Welcome
"""A message that an authority sends on its own. A later Welcome carries a checkpoint whose commit was not confirmed
to this process, or a changed policy."""


class Blobs(BlobReader, BlobWriter, Protocol):
    """The part of the agent's repository that a sidecar may read and write. Blocking; called from threads."""


class Authority(Protocol):
    """Asynchronous, on one event loop. Reports may be repeated; each takes effect once."""

    @property
    def blobs(self) -> Blobs:
        """The store of packs and manifests."""
        ...

    @property
    def connected(self) -> bool:
        """True if the authority can be reached now."""
        ...

    @property
    def silent_seconds(self) -> float:
        """Seconds since something last proved that this node is not cut off from the cluster."""
        ...

    @property
    def pack_check_seconds(self) -> float:
        """The least time between two checks that the packs of earlier checkpoints are in the store."""
        ...

    async def welcome(self) -> Welcome:
        """Return this sidecar's identity and parent checkpoint; wait until the authority answers.

        Raise Refused or Superseded if this incarnation may not work.
        """
        ...

    def orders(self) -> AsyncIterator[Order]:
        """Iterate over the authority's orders until it is closed."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """Return random bytes for the writer. Sixteen bytes name a pack; they may come from a reserve of names."""
        ...

    async def prepare_reads(self, keys: tuple[str, ...]) -> None:
        """Arrange for these objects to be readable, also while the authority is unreachable. Best effort."""
        ...

    async def report_progress(self, progress: Progress) -> None:
        """Report the progress of an attempt. The report may be dropped."""
        ...

    async def commit(self, offer: Offer) -> CheckpointRef:
        """Commit what is offered. Wait through outages until cancelled.

        Raise Superseded, Refused or IntegrityError if the offer cannot be committed.
        """
        ...

    async def report_result(self, result: Result) -> None:
        """Report an attempt that ended without an offer, as soon as the authority can be reached."""
        ...

    async def request_checkpoint(self, request: RequestCheckpoint) -> None:
        """Request a checkpoint. The order, or a Refused, arrives through ``orders``.

        Raise Unavailable if the request cannot be sent now.
        """
        ...

    async def leave_pending(self, attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
        """Store a finished manifest for a later commit. Raise Unavailable if even that is impossible."""
        ...

    def stop_waiting(self) -> None:
        """Fail every wait for a commit, for access to an object or for the store with Unavailable.

        An offer may still be committed, and an object may still be created.
        """
        ...

    def retry_quickly(self) -> None:
        """Shorten the pauses between retries from now on, because the pod is stopping."""
        ...

    async def report_release(self, released: Released) -> None:
        """Report that this incarnation has finished its work."""
        ...

    async def close(self) -> None:
        """Release every resource."""
        ...
