"""Who says what a sidecar may do: who it is, when to take a checkpoint, what exists. The protocol that its user needs.

``control.ControlClient`` asks the operator, ``local.LocalAuthority`` a directory store, ``tests.fakes`` nobody.
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
"""What an authority says by itself. A later Welcome tells a parent that came to be without an answer to us."""


class Blobs(BlobReader, BlobWriter, Protocol):
    """The agent's own repository, as far as a sidecar may touch it. Blocking; used from threads."""


class Authority(Protocol):
    """Asynchronous, on one event loop. Whoever speaks of the past may be told twice."""

    @property
    def blobs(self) -> Blobs:
        """Where packs and manifests are."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it can be asked now."""
        ...

    @property
    def silent_seconds(self) -> float:
        """How long nothing has proved that this node is not cut off from the cluster."""
        ...

    async def welcome(self) -> Welcome:
        """Who we are. Waits; raises Refused or Superseded when this incarnation may not work."""
        ...

    def orders(self) -> AsyncIterator[Order]:
        """What is to be done, until it is closed."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """Random bytes for the writer; sixteen at a time name a pack, and may come from a reserve of allowed names."""
        ...

    async def prepare_reads(self, keys: tuple[str, ...]) -> None:
        """These objects will be read soon, or must be readable when the authority is away. Never raises for absence."""
        ...

    async def progress(self, progress: Progress) -> None:
        """How far an attempt is; may be dropped."""
        ...

    async def commit(self, offer: Offer) -> CheckpointRef:
        """Make it exist; waits through outages until cancelled. Raises Superseded, Refused or IntegrityError."""
        ...

    async def result(self, result: Result) -> None:
        """An attempt ended without an offer; told as soon as it can be."""
        ...

    async def request_checkpoint(self, request: RequestCheckpoint) -> None:
        """Ask for an order; it comes through ``orders``, or a Refused does. Unavailable if it cannot be asked now."""
        ...

    async def leave_pending(self, attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
        """Leave a finished manifest for later. Unavailable if that is not possible either."""
        ...

    def stop_waiting(self) -> None:
        """Whoever waits for a commit or for access to an object is told Unavailable; what was offered may yet exist."""
        ...

    def hurry(self) -> None:
        """The pod is about to go: from now on, try often."""
        ...

    async def released(self, released: Released) -> None:
        """This incarnation has ended its work."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
