"""The init container's work, from its first connection to its exit: wait for an epoch, restore, report the outcome.

It ends within its deadline and never lets an agent start on state that was not verified: any exit status but 0 keeps
the agent's containers from starting.
"""

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from savepoint.contract import stage_layout
from savepoint.contract.control_protocol import CheckpointRef, Outcome, Welcome
from savepoint.contract.vocabulary import Reason, RestoreOutcome
from savepoint.errors import IntegrityError, Refused, SavepointError, StoreUnavailable, Unavailable
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.format.object_keys import manifest_key
from savepoint.storage.presigned import PresignedStore
from savepoint.storage.retry import Retry

from savepoint_sidecar.authority.control_connection import Dialer
from savepoint_sidecar.authority.restore_client import RestoreClient
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.checkpoint import parent_checkpoint
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.ownership import ProcessUser, require_restorable
from savepoint_sidecar.files.roots import Root, without_shared
from savepoint_sidecar.restore.aside import describe, label_of
from savepoint_sidecar.restore.file_restore import (
    InPlace,
    config_changed,
    ready_marker,
    restore_files,
    root_actions,
    root_error,
)
from savepoint_sidecar.restore.in_place import InPlaceReport
from savepoint_sidecar.restore.left_behind import moved_components, require_all_restored
from savepoint_sidecar.restore.markers import write_marker
from savepoint_sidecar.settings import Settings
from savepoint_sidecar.stage.components import (
    begin_epoch,
    prepare_stage,
    restore_components,
    sdk_components,
    write_index,
)

log = logging.getLogger(__name__)

DEADLINE_SECONDS: Final = 600.0
RETRY_SECONDS: Final = 3.0
PROGRESS_SECONDS: Final = 2.0
FIRST_READ: Final = Retry(attempts=2)
"""For the manifest. Nothing has been read yet, so an attempt may fail early, and its cause is reported at once."""
TERMINATION_BYTES: Final = 4096
SUCCESSFUL_OUTCOMES: Final = frozenset(RestoreOutcome)


async def restore(settings: Settings, failpoints: Failpoints, termination_log: Path | None) -> int:
    """Run the init container; return its exit status."""
    began = time.monotonic()
    client = RestoreClient(
        Dialer(settings.control_url, settings.control_ca, settings.token_path),
        node=settings.node,
        version=settings.version,
        monotonic=time.monotonic,
        random_id=lambda: secrets.token_hex(16),
        jitter=random.random,
    )
    outcome = await _outcome(settings, client, failpoints, began + DEADLINE_SECONDS)
    outcome = replace(outcome, milliseconds=round((time.monotonic() - began) * 1000))
    succeeded = outcome.outcome in SUCCESSFUL_OUTCOMES
    log.log(logging.INFO if succeeded else logging.ERROR, "%s: %s", outcome.outcome, outcome.message)
    if termination_log is not None:
        _write_termination(termination_log, outcome)
    await client.report_outcome(outcome)
    await client.close()
    return 0 if succeeded else 1


async def _outcome(settings: Settings, client: RestoreClient, failpoints: Failpoints, ends_at: float) -> Outcome:
    try:
        async with asyncio.timeout(ends_at - time.monotonic()):
            welcome = await client.grant()
    except TimeoutError:
        waited = client.latest_wait
        reason = Reason.TIMEOUT if waited.reason == Unavailable.reason else waited.reason
        return Outcome(reason, f"{waited.message} (waited {DEADLINE_SECONDS:.0f} s; the container restarts)")
    except SavepointError as error:
        return _failed(error)
    if welcome.parent is not None:
        log.info("epoch %d granted; restoring %s", welcome.epoch, welcome.parent.name)
    else:
        log.info("epoch %d granted; there is no checkpoint, so the agent starts fresh", welcome.epoch)
    ca_pem = welcome.store_ca or None
    with (
        closing(PresignedStore(client.urls, ca_pem=ca_pem)) as store,
        closing(PresignedStore(client.urls, ca_pem=ca_pem, retry=FIRST_READ)) as first_read_store,
    ):
        attempt = _RestoreAttempt(settings, client, store, welcome, failpoints, first_read_store=first_read_store)
        return await _restore_with_retries(attempt, client, ends_at)


async def _restore_with_retries(attempt: "_RestoreAttempt", client: RestoreClient, ends_at: float) -> Outcome:
    """Run the attempt until it ends, and retry until the deadline while the store or the operator is unreachable.

    What delays the restore is reported to the operator: if only this pod cannot reach the store, no other
    process could report why the agent does not start.
    """
    while True:
        try:
            return await attempt.run()
        except (StoreUnavailable, Unavailable) as error:
            if time.monotonic() + RETRY_SECONDS > ends_at:
                return Outcome(error.reason, f"{error} (retried for {DEADLINE_SECONDS:.0f} s; the container restarts)")
            log.warning("%s: %s; retrying in %.0f s", error.reason, error, RETRY_SECONDS)
            await client.report_delay(error.reason, f"The restore in this pod is held up and will be retried: {error}")
            if isinstance(error, StoreUnavailable):
                client.discard_read_urls()
            await asyncio.sleep(RETRY_SECONDS)
        except SavepointError as error:
            return _failed(error)
        except OSError as error:
            return Outcome(Reason.TARGET_UNUSABLE, f"cannot write the stage: {error.strerror or error}")


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class _RestoreAttempt:
    """One attempt at the restore; ``run`` may be called again."""

    def __init__(
        self,
        settings: Settings,
        client: RestoreClient,
        store: PresignedStore,
        welcome: Welcome,
        failpoints: Failpoints,
        *,
        first_read_store: PresignedStore,
    ) -> None:
        """``first_read_store`` is the same store with fewer retries, for the manifest."""
        self._settings, self._client, self._store, self._welcome = settings, client, store, welcome
        self._first_read_store = first_read_store
        self._failpoints = failpoints
        self._key = AgentKey(bytes.fromhex(welcome.key))
        self._marker = ready_marker(welcome, settings.pod_uid, welcome.parent)
        self._roots = without_shared(settings.roots, welcome.shared_roots)
        self._report = InPlaceReport()
        self._done = self._planned = 0

    async def run(self) -> Outcome:
        """Restore in a thread, and report progress meanwhile."""
        self._done = 0
        work = asyncio.ensure_future(asyncio.to_thread(self._restore))
        while not work.done():
            await asyncio.wait([work], timeout=PROGRESS_SECONDS)
            if self._done and not work.done():
                await self._client.report_progress(self._done, self._planned)
        return work.result()

    def _restore(self) -> Outcome:
        welcome, stage = self._welcome, self._settings.stage
        prepare_stage(stage, welcome.run)
        begin_epoch(stage, welcome.epoch, welcome.run)
        with suppress(FileNotFoundError):
            stage_layout.started_file(stage).unlink()
        write_index(stage, -1, ())
        return self._start_fresh() if welcome.parent is None else self._restore_checkpoint(welcome.parent)

    def _start_fresh(self) -> Outcome:
        welcome, roots = self._welcome, self._roots
        stage = self._settings.stage
        actions = root_actions(roots, welcome, None, stage)
        half_restored = [root for root, action in actions.items() if action == "restore"]
        restore_files(None, half_restored, self._marker, self._failpoints, stage=stage)
        for root in roots:
            try:
                write_marker(root, self._marker, stage)
            except OSError as error:
                raise root_error(root, error) from error
        return Outcome(RestoreOutcome.FRESH, f"agent {welcome.agent} starts fresh in epoch {welcome.epoch}")

    def _restore_checkpoint(self, parent: CheckpointRef) -> Outcome:
        welcome, stage = self._welcome, self._settings.stage
        self._client.expect_reads((manifest_key(parent.manifest.name),))
        loaded = parent_checkpoint.load(self._first_read_store, self._key, welcome.namespace, welcome.agent, parent)
        require_all_restored(loaded.manifest, self._roots, welcome.policy, parent.name, welcome.shared_roots)
        loaded = loaded.with_component_names(moved_components(loaded.manifest, self._roots, welcome.policy))
        self._client.expect_reads(loaded.pack_keys())
        changed = config_changed(welcome, loaded.manifest)
        if changed:
            log.warning(
                "ConfigurationChanged: %s was taken under another configuration (image, command, args, environment or "
                "ConfigMaps) than this pod's; restoring it anyway",
                parent.name,
            )
        actions = root_actions(self._roots, welcome, loaded.manifest, stage)
        to_restore = [root for root, action in actions.items() if action == "restore"]
        kept = [root for root, action in actions.items() if action == "keep"]
        kept_newer = [root for root in kept if loaded.manifest.component(root.component) is not None]
        if any(loaded.manifest.component(root.component) is not None for root in to_restore):
            user = ProcessUser.of_this_process(self._settings.uid_source)
            require_restorable(user, loaded.manifest.agent_uid, parent.name)
        self._planned = planned_bytes(loaded.manifest, to_restore, with_values=not kept_newer)
        with loaded.reader(self._store, self._key) as reader:
            capture = Capture(self._roots, welcome.policy.exclude, time.time_ns)
            in_place = InPlace(capture, label_of(utc_now()), report=self._report)
            if to_restore:
                stage_layout.files_restored_file(stage).touch()
            written = restore_files(
                reader, to_restore, self._marker, self._failpoints, self._progressed, in_place=in_place, stage=stage
            )
            for each in in_place.report.replaced:
                log.warning("files that %s does not have: %s", parent.name, describe(each))
            if kept_newer:
                names = ", ".join(root.mount_path for root in kept_newer)
                message = f"kept the state in {names}, which is at least as new as {parent.name}"
                outcome = RestoreOutcome.RESTORED if to_restore else RestoreOutcome.KEPT_LOCAL
                return self._ended(outcome, message, written, changed)
            components = restore_components(
                reader, stage, str(parent.sequence), progress=lambda done: self._progressed(written + done)
            )
            write_index(stage, parent.sequence, components)
        message = f"{parent.name} ({parent.time}, {written} bytes of files) was restored in epoch {welcome.epoch}"
        return self._ended(RestoreOutcome.RESTORED, message, written, changed)

    def _ended(self, outcome: RestoreOutcome, message: str, written: int, changed: bool) -> Outcome:
        """Return the outcome of a restore. ``changed``: the checkpoint is of another configuration than the pod's."""
        replaced = tuple(self._report.replaced)
        return Outcome(outcome, message, bytes_restored=written, config_changed=changed, replaced=replaced)

    def _progressed(self, done: int) -> None:
        self._done = done


def planned_bytes(manifest: Manifest, roots: Sequence[Root], *, with_values: bool) -> int:
    """Return the bytes that a restore of these roots, and of the SDK's values if wanted, will write. Pure."""
    found = [manifest.component(root.component) for root in roots]
    return sum(each.size for each in (*found, *(sdk_components(manifest) if with_values else ())) if each is not None)


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
