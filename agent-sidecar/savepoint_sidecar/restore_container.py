"""The init container from its first dial to its exit: granted, restored and verified, or a typed reason why not.

It ends within its bound, and never lets an agent start on state that was not verified: any exit but 0 keeps it from
starting.
"""

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from savepoint.contract import agent_protocol as agent_wire
from savepoint.contract.control_protocol import Outcome, Welcome
from savepoint.errors import IntegrityError, Refused, SavepointError, StoreUnavailable, Unavailable
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.repository import manifest_key
from savepoint.storage.presigned import PresignedStore
from savepoint.storage.retry import Retry

from savepoint_sidecar.authority.channel import Dialer
from savepoint_sidecar.authority.restore_client import RestoreClient
from savepoint_sidecar.checkpoint import parent_checkpoint
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root, without_shared, write_marker
from savepoint_sidecar.restore.file_restore import config_changed, marker_of, plan, restore_files, unusable
from savepoint_sidecar.settings import Settings
from savepoint_sidecar.stage.components import (
    begin_epoch,
    prepare_stage,
    restore_components,
    sdk_components,
    write_index,
)

log = logging.getLogger(__name__)

BOUND_SECONDS: Final = 600.0
AGAIN_SECONDS: Final = 3.0
PROGRESS_SECONDS: Final = 2.0
FIRST_READ: Final = Retry(attempts=2)
"""Of the manifest: nothing is lost with a try that ends before anything was read, and what is in its way is told."""
TERMINATION_BYTES: Final = 4096
STARTED: Final = "started"
"""In the sidecar's part of the stage: the agent may have run since the last restore."""
GOOD: Final = frozenset({"Restored", "Fresh", "KeptLocal"})


async def restore(settings: Settings, failpoints: Failpoints, termination_log: Path | None) -> int:
    """Run the init container; its exit status."""
    began = time.monotonic()
    client = RestoreClient(
        Dialer(settings.control_url, settings.control_ca, settings.token_path),
        node=settings.node,
        version=settings.version,
        monotonic=time.monotonic,
        random_id=lambda: secrets.token_hex(16),
        jitter=random.random,
    )
    outcome = await _outcome(settings, client, failpoints, began + BOUND_SECONDS)
    outcome = Outcome(**{**asdict(outcome), "milliseconds": round((time.monotonic() - began) * 1000)})
    level = logging.INFO if outcome.outcome in GOOD else logging.ERROR
    log.log(level, "%s: %s", outcome.outcome, outcome.message)
    if termination_log is not None:
        _write_termination(termination_log, outcome)
    await client.outcome(outcome)
    await client.close()
    return 0 if outcome.outcome in GOOD else 1


async def _outcome(settings: Settings, client: RestoreClient, failpoints: Failpoints, ends_at: float) -> Outcome:
    try:
        async with asyncio.timeout(ends_at - time.monotonic()):
            welcome = await client.grant()
    except TimeoutError:
        waited = client.waits_for
        reason = "Timeout" if waited.reason == Unavailable.reason else waited.reason
        return Outcome(reason, f"{waited.message} (waited {BOUND_SECONDS:.0f} s; the container starts again)")
    except SavepointError as error:
        return _failed(error)
    what = welcome.parent.name if welcome.parent is not None else "nothing: the agent starts fresh"
    log.info("epoch %d is granted; restoring %s", welcome.epoch, what)
    ca_pem = welcome.store_ca or None
    with (
        closing(PresignedStore(client.urls, ca_pem=ca_pem)) as store,
        closing(PresignedStore(client.urls, ca_pem=ca_pem, retry=FIRST_READ)) as impatient,
    ):
        work = _Restore(settings, client, store, welcome, failpoints, impatient=impatient)
        return await _tries(work, client, ends_at)


async def _tries(work: "_Restore", client: RestoreClient, ends_at: float) -> Outcome:
    """Until it has ended: a store or an operator that is away is waited for, within the bound, and the operator told.

    Only this pod may be cut off from the store: nobody else would see why it does not start.
    """
    while True:
        try:
            return await work.run()
        except (StoreUnavailable, Unavailable) as error:
            if time.monotonic() + AGAIN_SECONDS > ends_at:
                return Outcome(error.reason, f"{error} (tried for {BOUND_SECONDS:.0f} s; the container starts again)")
            log.warning("%s: %s; trying again", error.reason, error)
            await client.held_up(error.reason, f"The restore in this pod is held up, and tried again: {error}")
            if isinstance(error, StoreUnavailable):
                client.store_not_reached()
            await asyncio.sleep(AGAIN_SECONDS)
        except SavepointError as error:
            return _failed(error)
        except OSError as error:
            return Outcome("TargetUnusable", f"the stage cannot be written: {error.strerror or error}")


class _Restore:
    """One try."""

    def __init__(
        self,
        settings: Settings,
        client: RestoreClient,
        store: PresignedStore,
        welcome: Welcome,
        failpoints: Failpoints,
        *,
        impatient: PresignedStore,
    ) -> None:
        """``impatient``: the same store, for the first read."""
        self._settings, self._client, self._store, self._welcome = settings, client, store, welcome
        self._first_reads = impatient
        self._failpoints = failpoints
        self._roots = without_shared(settings.roots, welcome.shared_roots)
        self._done = self._planned = 0

    async def run(self) -> Outcome:
        """Restore in a thread, and tell how far it is."""
        self._done = 0
        work = asyncio.ensure_future(asyncio.to_thread(self._work))
        while not work.done():
            await asyncio.wait([work], timeout=PROGRESS_SECONDS)
            if self._done and not work.done():
                await self._client.progress(self._done, self._planned)
        return work.result()

    def _work(self) -> Outcome:
        settings, welcome = self._settings, self._welcome
        roots, stage, parent = self._roots, settings.stage, welcome.parent
        prepare_stage(stage, welcome.run)
        begin_epoch(stage, welcome.epoch, welcome.run)
        with suppress(FileNotFoundError):
            (stage / agent_wire.STAGE_SIDECAR / STARTED).unlink()
        write_index(stage, -1, ())
        key = AgentKey(bytes.fromhex(welcome.key))
        marker = marker_of(welcome, settings.pod_uid, parent)
        if parent is None:
            actions = plan(roots, welcome, None)
            restore_files(
                None, [root for root, action in actions.items() if action == "restore"], marker, self._failpoints
            )
            for root in roots:
                try:
                    write_marker(root, marker)
                except OSError as error:
                    raise unusable(root, error) from error
            return Outcome("Fresh", f"agent {welcome.agent} starts fresh in epoch {welcome.epoch}")
        self._client.expect((manifest_key(parent.manifest.name),))
        loaded = parent_checkpoint.load(self._first_reads, key, welcome.namespace, welcome.agent, parent)
        self._client.expect(loaded.keys())
        changed = config_changed(welcome, loaded.manifest)
        if changed:
            log.warning(
                "ConfigurationChanged: %s was made under another configuration (image, command, args, environment or "
                "ConfigMaps) than this pod's; it is restored all the same",
                parent.name,
            )
        actions = plan(roots, welcome, loaded.manifest)
        lost = [root for root, action in actions.items() if action == "restore"]
        kept = [root for root, action in actions.items() if action == "keep"]
        held = [root for root in kept if loaded.manifest.component(root.component) is not None]
        self._planned = planned_bytes(loaded.manifest, lost, values=not held)
        with loaded.reader(self._store, key) as reader:
            written = restore_files(reader, lost, marker, self._failpoints, self._progressed)
            if held:
                names = ", ".join(root.mount_path for root in held)
                message = f"{names} holds state that is at least as new as {parent.name}: it was kept"
                reason = "Restored" if lost else "KeptLocal"
                return Outcome(reason, message, bytes_restored=written, config_changed=changed)
            components = restore_components(
                reader, stage, str(parent.sequence), progress=lambda done: self._progressed(written + done)
            )
            write_index(stage, parent.sequence, components)
        message = f"{parent.name} ({parent.time}, {written} bytes of files) is back in epoch {welcome.epoch}"
        return Outcome("Restored", message, bytes_restored=written, config_changed=changed)

    def _progressed(self, done: int) -> None:
        self._done = done


def planned_bytes(manifest: Manifest, roots: Sequence[Root], *, values: bool) -> int:
    """What a restore of these roots will write; ``values``: and what an SDK handed over. Pure."""
    found = [manifest.component(root.component) for root in roots]
    return sum(each.size for each in (*found, *(sdk_components(manifest) if values else ())) if each is not None)


def _failed(error: SavepointError) -> Outcome:
    reason = error.code if isinstance(error, Refused) else error.reason
    key = error.object_key if isinstance(error, IntegrityError) else ""
    return Outcome(reason, str(error), object_key=key)


def _write_termination(path: Path, outcome: Outcome) -> None:
    text = json.dumps(
        {
            "outcome": outcome.outcome,
            "message": outcome.message[:2048],
            "object": outcome.object_key[:512],
            "bytes": outcome.bytes_restored,
            "milliseconds": outcome.milliseconds,
            "configChanged": outcome.config_changed,
        }
    )
    with suppress(OSError):
        path.write_text(text[:TERMINATION_BYTES])
