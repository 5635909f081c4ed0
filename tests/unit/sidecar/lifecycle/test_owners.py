"""An agent whose uid stands only in its image: what a checkpoint records of it, and which pod may restore that."""

import asyncio
import os
from pathlib import Path
from typing import cast

import pytest
from savepoint.contract.vocabulary import UidSource
from savepoint.errors import RunAsUserRequired
from savepoint.storage.presigned import PresignedStore
from savepoint_sidecar.authority.restore_client import RestoreClient
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files import ownership
from savepoint_sidecar.files.ownership import ProcessUser
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore_container import _RestoreAttempt
from savepoint_sidecar.settings import Settings

from tests.fakes.authority import FakeAuthority
from tests.polling import until
from tests.unit.sidecar.harness import Harness, checkpoint, running
from tests.unit.sidecar.lifecycle.test_shared_roots import FakeRestoreClient

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
NO_UID = ProcessUser(0, UidSource.NONE)


@pytest.fixture(autouse=True)
def _no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge as the injected containers do, which have no capability."""
    monkeypatch.setattr(ownership, "may_change_owners", lambda: False)


def write_as(harness: Harness, uid: int, *names: str) -> None:
    """Write files as an agent with this uid does."""
    for name in names:
        (harness.files / name).write_bytes(name.encode())
        os.chown(harness.files / name, uid, uid)


async def restore(folder: Path, authority: FakeAuthority, source: UidSource) -> Path:
    """Run one attempt of the init container of the next pod; return its state folder."""
    welcome = await authority.welcome()
    root = Root("files", "/data", folder / "next", persistent=False)
    root.path.mkdir(exist_ok=True)
    settings = Settings("wss://x", "", "coder-2", "demo", "uid", "n1", 30, (root,), source, stage=folder / "next-stage")
    client, store = cast(RestoreClient, FakeRestoreClient()), cast(PresignedStore, authority.blobs)
    attempt = _RestoreAttempt(settings, client, store, welcome, Failpoints(), first_read_store=store)
    await asyncio.to_thread(attempt._restore)
    return root.path


async def test_the_uid_that_only_the_image_knows_is_recorded_and_reported(tmp_path: Path) -> None:
    async with running(tmp_path, user=NO_UID) as harness:
        write_as(harness, 1000, "a", "b")
        await checkpoint(harness, agent_flushes=False)
        manifest = harness.authority.manifest()
        assert manifest.agent_uid == 1000 and harness.authority.offers[-1].agent_uid == 1000
        tree = manifest.component("files.files")
        assert tree is not None
        with harness.authority.reader() as reader:
            assert {entry.owner for entry in reader.tree_entries(tree)} == {(1000, 1000)}


async def test_a_restore_under_another_uid_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    async with running(tmp_path, user=NO_UID) as harness:
        write_as(harness, 1000, "a")
        await checkpoint(harness, agent_flushes=False)
        with pytest.raises(RunAsUserRequired, match="runAsUser: 1000"):
            await restore(tmp_path, harness.authority, UidSource.NONE)
        assert list((tmp_path / "next").iterdir()) == []
        restored = await restore(tmp_path, harness.authority, UidSource.POD)
        assert (restored / "a").read_bytes() == b"a", "a pod that declares its uid becomes the owner"


async def test_an_agent_that_is_root_is_restored_as_before(tmp_path: Path) -> None:
    async with running(tmp_path, user=NO_UID) as harness:
        write_as(harness, 0, "log", "notes")
        write_as(harness, 1001, "unpacked")
        await checkpoint(harness, agent_flushes=False)
        assert harness.authority.manifest().agent_uid == 0 and harness.authority.offers[-1].agent_uid is None
        assert (await restore(tmp_path, harness.authority, UidSource.NONE) / "unpacked").exists()


async def test_a_wrong_number_is_refused_at_capture(tmp_path: Path) -> None:
    async with running(tmp_path, user=ProcessUser(1001, UidSource.ANNOTATION)) as harness:
        write_as(harness, 1000, "a")
        harness.authority.order()
        await until(lambda: harness.authority.results)
        result = harness.authority.results[-1]
        assert (result.outcome, result.reason, result.agent_uid) == ("Failed", "RunAsUserRequired", 1000)
        assert "says 1001" in result.message and not harness.authority.offers


async def test_the_uid_of_the_connecting_process_is_known_to_the_kernel(tmp_path: Path) -> None:
    async with running(tmp_path, user=ProcessUser(1000, UidSource.OBSERVED)) as harness:
        write_as(harness, 1000, "a")
        await harness.connected()  # this process, which is root
        await checkpoint(harness)
        assert harness.authority.manifest().agent_uid == os.geteuid()
