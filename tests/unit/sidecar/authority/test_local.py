"""The authority of a laptop: its timer orders one attempt at a time."""

import asyncio
import os
from datetime import UTC, datetime

import pytest
from savepoint.contract.control_protocol import Checkpoint, Result
from savepoint.repository.format.keys import MasterKey
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.write.source import MemorySource
from savepoint_sidecar.authority.local import LocalAuthority, LocalClock, LocalConfig

from tests.fakes.repository_fixture import RepositoryFixture
from tests.fakes.store import MemoryStore


async def test_the_interval_waits_for_an_attempt_that_is_in_flight() -> None:
    def now() -> datetime:
        return datetime.now(UTC)

    authority = LocalAuthority.open(
        MemoryStore(now),
        "coder",
        MasterKey(bytes(32)),
        LocalConfig(interval_seconds=0.01),
        LocalClock(now, os.urandom),
        incarnation="one",
        node="here",
    )
    await authority.welcome()
    try:
        orders = authority.orders()
        first = await anext(orders)
        assert isinstance(first, Checkpoint)
        waiting = asyncio.ensure_future(anext(orders))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await authority.report_result(Result(first.attempt, "Unchanged"))
        second = await asyncio.wait_for(waiting, 10)
        assert isinstance(second, Checkpoint)
        assert second.attempt != first.attempt
    finally:
        await authority.close()


def test_a_run_reports_packs_that_the_store_has_lost(caplog: pytest.LogCaptureFixture) -> None:
    repo = RepositoryFixture(MemoryStore())
    repo.checkpoint(lambda writer: writer.add_blob("notes", "Memory", MemorySource(b"notes")))
    assert repo.manifest is not None
    key = pack_key(repo.manifest.packs[0].name)
    repo.repository.store.delete(key)
    clock = LocalClock(lambda: datetime.now(UTC), os.urandom)
    authority = LocalAuthority(repo.repository, repo.chain, repo.head, LocalConfig(), clock)
    authority._collect()
    assert (
        f"the store lost data that 1 checkpoints need, which cannot be restored whole: {key} is missing" in caplog.text
    )
