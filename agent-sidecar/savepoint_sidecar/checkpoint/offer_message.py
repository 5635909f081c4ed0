"""The message that offers a finished checkpoint to the authority."""

import os
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import ComponentSummary, ObjectName, Offer
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.history import lineage

from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt

SHOWN_OPERATIONS: Final = 512
"""The most uncertain operations that an offer lists; their whole count is in it too. The manifest lists all."""
SHOWN_ID_CHARACTERS: Final = 1024


def offer_message(
    attempt: CaptureAttempt, offer: lineage.UploadedCheckpoint, manifest: Manifest, flush: wire.Flush | None
) -> Offer:
    """Return the message for what the writer has stored. ``flush`` is None for an agent without the SDK."""
    execution = flush.execution if flush is not None else wire.Execution()
    return Offer(
        attempt=attempt.id,
        manifest=ObjectName(offer.name, offer.size),
        packs=tuple(ObjectName(pack.name, pack.size) for pack in offer.packs),
        trigger=attempt.trigger,
        consistency=manifest.consistency,
        logical_bytes=offer.logical,
        stored_bytes=offer.stored,
        uploaded_bytes=offer.uploaded_bytes,
        timing=attempt.timing(),
        components=tuple(ComponentSummary(c.name, c.kind, c.digest, c.size) for c in manifest.components),
        step=execution.step[:SHOWN_ID_CHARACTERS] if execution.step else execution.step,
        open_operations=len(execution.open),
        uncertain_operations=tuple(each[:SHOWN_ID_CHARACTERS] for each in execution.uncertain[:SHOWN_OPERATIONS]),
        uncertain_count=len(execution.uncertain),
        completed=attempt.completed,
        shrinkages=manifest.shrinkages,
        capture=manifest.capture,
        agent_uid=manifest.agent_uid if manifest.agent_uid != os.geteuid() else None,
    )
