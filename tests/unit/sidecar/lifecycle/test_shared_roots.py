"""A root that other pods may write is neither read nor written, neither by the init container nor by the sidecar."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from savepoint.contract.control_protocol import PolicyTerms
from savepoint.storage.presigned import PresignedStore
from savepoint_sidecar.authority.restore_client import RestoreClient
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.lifecycle import orders
from savepoint_sidecar.restore.markers import Marker, write_marker
from savepoint_sidecar.restore_container import _RestoreAttempt
from savepoint_sidecar.settings import Settings

from tests.fakes.authority import FakeAuthority
from tests.polling import until
from tests.unit.sidecar.harness import checkpoint, running

SHARED = ("team",)
LOG_START = "/team is on a ReadWriteMany claim"


class FakeRestoreClient:
    """The part of a restore client that one attempt of the init container needs."""

    def expect_reads(self, keys: object) -> None:
        """Do nothing: the test requests no URLs."""


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Root, Root]:
    """Return the agent's own root, and one that other pods write as well."""
    own, team = (Root(name, f"/{name}", tmp_path / name, persistent=True) for name in ("own", "team"))
    for root in (own, team):
        root.path.mkdir()
    (own.path / "mine").write_bytes(b"of the agent")
    (team.path / "theirs").write_bytes(b"of another pod")
    return own, team


def snapshot(root: Root) -> dict[str, tuple[int, bytes]]:
    """Return all paths of the root with their modification times and contents."""
    return {
        str(path.relative_to(root.path)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (root.path, *sorted(root.path.rglob("*")))
    }


async def restore(folder: Path, roots: tuple[Root, ...], authority: FakeAuthority, *, fresh: bool) -> str:
    """Run one attempt of the init container with the authority's welcome, and return its outcome."""
    welcome = replace(await authority.welcome(), shared_roots=SHARED, policy=PolicyTerms(dropped=SHARED))
    welcome = replace(welcome, parent=None) if fresh else welcome
    settings = Settings("wss://x", "", "coder-2", "demo", "uid", "n1", 30, roots, stage=folder / "next-stage")
    client, store = cast(RestoreClient, FakeRestoreClient()), cast(PresignedStore, authority.blobs)
    attempt = _RestoreAttempt(settings, client, store, welcome, Failpoints(), first_read_store=store)
    return (await asyncio.to_thread(attempt._restore)).outcome


@pytest.mark.parametrize("fresh", [False, True])
async def test_the_init_container_never_touches_a_shared_root(
    tmp_path: Path, roots: tuple[Root, Root], caplog: pytest.LogCaptureFixture, fresh: bool
) -> None:
    own, team = roots
    async with running(tmp_path, roots=roots) as harness:  # as an earlier version did, which captured shared roots
        await checkpoint(harness, agent_flushes=False)
        await harness.idle()
        assert {each.name for each in harness.authority.manifest().components} == {"files.own", "files.team"}
    (own.path / "mine").write_bytes(b"and torn")
    (team.path / "later").write_bytes(b"of yet another pod")
    for root in roots:  # an interrupted restore, whose roots are cleared
        write_marker(root, Marker("demo", "coder", "pod-0", 1, 1, "restoring"))
    before = snapshot(team)
    with caplog.at_level("INFO"):
        outcome = await restore(tmp_path, roots, harness.authority, fresh=fresh)
    assert outcome == ("Fresh" if fresh else "Restored")
    assert snapshot(team) == before
    assert not (own.path / "mine").exists() if fresh else (own.path / "mine").read_bytes() == b"of the agent"
    assert len([text for text in caplog.messages if text.startswith(LOG_START)]) == 1


async def test_the_sidecar_neither_captures_nor_marks_nor_restores_a_shared_root(
    tmp_path: Path, roots: tuple[Root, Root], caplog: pytest.LogCaptureFixture
) -> None:
    own, team = roots
    with caplog.at_level("INFO"):
        policy = PolicyTerms(on_container_restart="Restore")
        async with running(tmp_path, roots=roots, shared_roots=SHARED, policy=policy) as harness:
            before = snapshot(team)
            agent = await harness.connected()
            await checkpoint(harness)
            assert {each.name for each in harness.authority.manifest().components if each.kind == "Files"} == {
                "files.own"
            }
            (own.path / "mine").write_bytes(b"and torn")
            await agent.die()
            await harness.connected("two")  # the files are restored to the checkpoint
            assert (own.path / "mine").read_bytes() == b"of the agent"
            assert snapshot(team) == before
    assert len([text for text in caplog.messages if text.startswith(LOG_START)]) == 1


async def test_an_agent_with_only_a_shared_root_gets_a_remedy(
    tmp_path: Path, roots: tuple[Root, Root], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "FIRST_CONNECT_SECONDS", 0.0)
    async with running(tmp_path, roots=roots[1:], shared_roots=SHARED) as harness:
        harness.authority.order()
        await until(lambda: harness.authority.results)
        assert "has no volume of its own" in harness.authority.results[0].message


async def test_roots_that_are_not_shared_are_captured(tmp_path: Path, roots: tuple[Root, Root]) -> None:
    async with running(tmp_path, roots=roots, shared_roots=("another",)) as harness:
        await checkpoint(harness, agent_flushes=False)
        assert {each.name for each in harness.authority.manifest().components} == {"files.own", "files.team"}
