"""File trees of a checkpoint that the pod's state folders do not include: moved, dropped, or a refusal."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from savepoint.contract.control_protocol import MovedRoot, PolicyTerms
from savepoint.errors import StateLeftBehind
from savepoint.repository.format.manifest import ComponentRecord, Manifest, Sizes
from savepoint.storage.presigned import PresignedStore
from savepoint_sidecar.authority.restore_client import RestoreClient
from savepoint_sidecar.failpoint import Failpoints
from savepoint_sidecar.files.roots import Root
from savepoint_sidecar.restore.left_behind import moved_components, require_all_restored, shown_path
from savepoint_sidecar.restore_container import _RestoreAttempt
from savepoint_sidecar.settings import Settings

from tests.fakes.authority import FakeAuthority
from tests.fakes.store import MemoryStore
from tests.unit.sidecar.harness import checkpoint, running


def manifest(*names: str) -> Manifest:
    trees = [ComponentRecord(f"files.{name}", "Files", "tree", "", 0, ()) for name in names]
    values = ComponentRecord("files.values", "Memory", "entries", "", 0, ())
    return Manifest("demo", "coder", "", 1, "", "Fuzzy", (*trees, values), (), Sizes(0, 0, 0))


def roots(*paths: str) -> tuple[Root, ...]:
    return tuple(Root(path.strip("/").replace("/", "-"), path, Path(path)) for path in paths)


def refusal(stored: Manifest, present: tuple[Root, ...], shared: tuple[str, ...] = (), **terms: Any) -> str:
    with pytest.raises(StateLeftBehind) as caught:
        require_all_restored(stored, present, PolicyTerms(**terms), "coder-7", shared)
    return str(caught.value)


def test_a_pod_with_every_folder_starts_also_with_further_ones() -> None:
    require_all_restored(manifest("work"), roots("/work", "/more"), PolicyTerms(), "coder-7")
    require_all_restored(manifest(), (), PolicyTerms(), "coder-7")


def test_a_renamed_folder_is_refused_naming_both_paths_and_the_remedies() -> None:
    text = refusal(manifest("data-work"), roots("/data/new"))
    assert "coder-7 holds the state folder /data/work" in text and "(its state folders: /data/new)" in text
    assert "{from: /data/work, to: /data/new} to spec.state.moved" in text
    assert "/data/work in spec.state.dropped" in text


def test_a_removed_folder_is_refused() -> None:
    text = refusal(manifest("data", "work"), roots("/work"))
    assert "to: NEW" in text and "state folder /data," in text
    assert "(its state folders: none)" in refusal(manifest("data"), ())


def test_a_folder_that_is_shared_now_is_refused_with_a_remedy_of_its_own() -> None:
    assert "is ReadWriteMany now" in refusal(manifest("team"), (), ("team",))
    assert "Mount it again" in refusal(manifest("data"), (), ("team",))


def test_a_dropped_folder_is_left_out() -> None:
    require_all_restored(manifest("data", "work"), roots("/work"), PolicyTerms(dropped=("data", "other")), "coder-7")
    refusal(manifest("data", "work"), (), dropped=("data",))


def test_a_moved_folder_gets_the_new_name() -> None:
    terms = PolicyTerms(moved=(MovedRoot("data", "work"),))
    assert moved_components(manifest("data"), roots("/work"), terms) == {"files.data": "files.work"}
    require_all_restored(manifest("data"), roots("/work"), terms, "coder-7")


@pytest.mark.parametrize(
    ("stored", "present"),
    [
        (("work",), ("/work",)),  # it has moved already
        (("data",), ("/data", "/work")),  # it is still at its old path
        (("other",), ("/work",)),  # it never existed
    ],
)
def test_a_move_that_does_not_apply_does_nothing(stored: tuple[str, ...], present: tuple[str, ...]) -> None:
    terms = PolicyTerms(moved=(MovedRoot("data", "work"),))
    assert moved_components(manifest(*stored), roots(*present), terms) == {}


def test_a_move_to_a_folder_that_is_not_there_or_has_files_of_its_own_is_refused() -> None:
    moved = (MovedRoot("data", "work"),)
    refusal(manifest("data"), roots("/elsewhere"), moved=moved)
    refusal(manifest("data", "work"), roots("/work"), moved=moved)


def test_two_folders_never_move_to_one() -> None:
    moved = (MovedRoot("one", "work"), MovedRoot("two", "work"))
    assert moved_components(manifest("one", "two"), roots("/work"), PolicyTerms(moved=moved)) == {
        "files.one": "files.work"
    }
    assert "/two" in refusal(manifest("one", "two"), roots("/work"), moved=moved)


def test_a_path_that_the_name_does_not_tell_is_shown_as_a_name() -> None:
    assert shown_path("files.my-data-0a1b2c3d") == "(tree my-data-0a1b2c3d)"
    assert shown_path("files.data-work") == "/data/work"


class Reads:
    """The part of a restore client that one attempt of the init container needs."""

    def expect_reads(self, keys: object) -> None:
        """Do nothing: the test requests no URLs."""


async def start(folder: Path, roots: tuple[Root, ...], authority: FakeAuthority, terms: PolicyTerms) -> str:
    """Run one attempt of the init container under this policy; return its outcome."""
    welcome = replace(await authority.welcome(), policy=terms)
    settings = Settings("wss://x", "", "coder-2", "demo", "uid", "n1", 30, roots, stage=folder / "next-stage")
    client, store = cast(RestoreClient, Reads()), cast(PresignedStore, authority.blobs)
    attempt = _RestoreAttempt(settings, client, store, welcome, Failpoints(), first_read_store=store)
    return (await asyncio.to_thread(attempt._restore)).outcome


async def test_the_init_container_refuses_before_it_writes_then_restores_into_the_new_folder(tmp_path: Path) -> None:
    old, new = (Root(name, f"/{name}", tmp_path / name) for name in ("old", "new"))
    old.path.mkdir()
    new.path.mkdir()
    (old.path / "notes").write_bytes(b"of the agent")
    async with running(tmp_path, roots=(old,)) as harness:
        await checkpoint(harness, agent_flushes=False)
        await harness.idle()
    with pytest.raises(StateLeftBehind, match="holds the state folder /old"):
        await start(tmp_path, (new,), harness.authority, PolicyTerms())
    assert list(new.path.iterdir()) == []
    terms = PolicyTerms(moved=(MovedRoot("old", "new"),))
    assert await start(tmp_path, (new,), harness.authority, terms) == "Restored"
    assert (new.path / "notes").read_bytes() == b"of the agent"


async def test_the_next_checkpoint_after_a_move_holds_the_folder_under_its_new_name(tmp_path: Path) -> None:
    old, new = (Root(name, f"/{name}", tmp_path / name) for name in ("old", "new"))
    for root in (old, new):
        root.path.mkdir()
        (root.path / "notes").write_bytes(b"of the agent")
    terms = PolicyTerms(moved=(MovedRoot("old", "new"),))
    store = MemoryStore(lambda: datetime.now(UTC))
    async with running(tmp_path, store, roots=(old,)) as harness:
        await checkpoint(harness, agent_flushes=False)
        await harness.idle()
    (new.path / "more").write_bytes(b"later")
    async with running(tmp_path, store, roots=(new,), policy=terms, pod_uid="pod-2") as second:
        await checkpoint(second, agent_flushes=False)
        await second.idle()
        assert {each.name for each in second.authority.manifest().components} == {"files.new"}
        assert second.authority.manifest().shrinkages == ()
