"""A connected sidecar whose messages the test sends, and whose uploads are real."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from savepoint.contract.control_protocol import (
    Ack,
    Checkpoint,
    Committed,
    ComponentSummary,
    ObjectName,
    Offer,
    Progress,
    Released,
    Timing,
    Welcome,
)
from savepoint.repository.format.canonical import time_text
from savepoint.repository.format.keys import AgentKey as RepositoryKey
from savepoint.repository.format.manifest import Manifest, Parent
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions
from savepoint.storage.presigned import PresignedStore

from tests.fakes.control_harness import Pod
from tests.servers.control import RequestedUrls


@dataclass
class ScriptedSidecar:
    """A connected sidecar that the test plays."""

    connection: Pod
    welcome: Welcome
    manifest: Manifest | None = None
    """The manifest of the checkpoint that was uploaded last."""

    async def next_order(self) -> Checkpoint:
        """Return the next order, which must be for a checkpoint."""
        return await self.connection.expect(Checkpoint)

    async def upload(self, order: Checkpoint, content: bytes = b"state", **more: Any) -> Offer:
        """Upload a checkpoint as a sidecar does, and return its offer. ``more`` are fields of the offer."""
        with closing(PresignedStore(RequestedUrls(self.connection))) as store:
            return await asyncio.to_thread(self._upload, store, order, content, more)

    def _upload(self, store: PresignedStore, order: Checkpoint, content: bytes, more: dict[str, Any]) -> Offer:
        welcome = self.welcome
        key = RepositoryKey(bytes.fromhex(welcome.key))
        parent: Parent | None = more.pop("parent", None)
        base = self.manifest if parent is not None else None
        writer = CheckpointWriter(
            store, store, key, welcome.epoch, base, options=WriterOptions(random_bytes=os.urandom)
        )
        writer.add_blob("notes", "Memory", MemorySource(content))
        written = writer.finish(
            namespace=welcome.namespace,
            agent=welcome.agent,
            attempt=order.attempt,
            created=time_text(datetime.now(UTC)),
            consistency="Application",
            parent=parent,
        )
        writer.commit()
        self.manifest = writer.manifest
        fields: dict[str, Any] = {"trigger": order.trigger, "step": "docs 42 of 90", **more}
        return Offer(
            attempt=written.attempt,
            manifest=ObjectName(written.name, written.size),
            packs=tuple(ObjectName(pack.name, pack.size) for pack in written.packs),
            consistency="Application",
            logical_bytes=written.logical,
            stored_bytes=written.stored,
            uploaded_bytes=written.uploaded_bytes,
            timing=Timing(time_text(datetime.now(UTC)), time_text(datetime.now(UTC)), None, 38),
            components=(ComponentSummary("notes", "Memory", "ab" * 32, len(content)),),
            **fields,
        )

    async def commit(self, order: Checkpoint, content: bytes = b"state", **more: Any) -> Committed:
        """Answer an order as a sidecar does: report progress, upload, and offer."""
        for phase, percent in (("Quiescing", 0), ("Capturing", 10), ("Uploading", 63)):
            await self.connection.send(Progress(order.attempt, phase, percent, percent, 100))
        offer = await self.upload(order, content, **more)
        return await self.connection.request(offer, Committed)

    async def release(self, completed: bool = False) -> None:
        """Report the release, which is a sidecar's last message, and disconnect."""
        await self.connection.request(Released(self.welcome.epoch, completed), Ack)
        await self.connection.close()
