"""The end of a run: the final checkpoint and its completion."""

import asyncio
from pathlib import Path

from savepoint.contract import agent_protocol as wire
from savepoint.repository.history.lineage import pending_bytes, pending_of

from tests.unit.sidecar.harness import running


async def test_finish_commits_and_completes(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        agent.documents = {"notes": "last"}
        answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"] == "coder-2"
        assert harness.authority.head.record.kind == "completed"
        attempt = harness.authority.order()  # every order gets an answer
        await harness.authority.await_attempts(len(harness.authority.offers) + 1)
        assert harness.authority.results[-1].attempt == attempt and harness.authority.results[-1].reason == "Completed"
        assert await harness.incarnation.shut_down()
        assert harness.authority.releases[-1].completed


async def test_finish_without_an_operator_leaves_a_pending_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.reachable.clear()
        agent.documents = {"notes": "last"}
        answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"] == ""
        (pending,) = harness.authority.pending
        assert pending.completed and pending_of(pending_bytes(pending), "x") == pending


async def test_an_agent_may_finish_while_its_pod_is_stopping(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.incarnation.begin_shutdown()
        await agent.next(wire.Stopping)
        async with asyncio.timeout(3):
            answer = await agent.post(wire.PATH_FINISH, agent.flush_of(""))
        assert answer["checkpoint"]
        await agent.die()
        assert await harness.incarnation.shut_down()
        assert harness.authority.releases[-1].completed and harness.authority.head.record.kind == "completed"
