"""The fence as the agent sees it."""

from pathlib import Path

from savepoint.contract import agent_protocol as wire

from tests.unit.sidecar.harness import running


async def test_silence_raises_the_fence_and_an_answer_lowers_it(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        agent = await harness.connected()
        harness.authority.silence = 11.0
        await agent.next(wire.Fenced)
        harness.authority.silence = 0.0
        await agent.next(wire.Unfenced)
