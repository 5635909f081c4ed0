"""A pod's life with its real processes: init container, native sidecar and an agent with the SDK, over TLS and S3.

Only kubelet and the API server are missing: the test starts and ends the processes as kubelet would.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from savepoint_operator.model.views import NodeState, PodState, PredecessorState

from tests.servers.s3 import S3Server
from tests.servers.sidecar_pod import AGENT_PROGRAM, IDLE_BYTES, WORK_BYTES, Pod, Site, exit_of, rss, site_over, until


@pytest.fixture
async def site(s3_versitygw: S3Server, tmp_path: Path) -> AsyncIterator[Site]:
    async with site_over(s3_versitygw, tmp_path) as made:
        yield made


async def terminate(pod: Pod, agent: "subprocess.Popen[bytes]", sidecar: "subprocess.Popen[bytes]") -> None:
    """As kubelet does: the sidecar's preStop hook and the agent's SIGTERM at once, the sidecar's after the agent."""
    hook = pod.start("-m", "savepoint_sidecar.main", "prestop")
    agent.send_signal(signal.SIGTERM)
    assert await exit_of(hook) == 0
    assert await exit_of(agent) == 128 + signal.SIGTERM, pod.log()
    sidecar.send_signal(signal.SIGTERM)
    assert await exit_of(sidecar) == 0, pod.log()


@pytest.mark.timeout(180)
async def test_a_pod_lives_crashes_ends_and_comes_back_elsewhere(site: Site) -> None:
    pod = site.pod("a")
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    agent = pod.agent()
    await pod.turns(5)
    assert (await site.checkpoint()).startswith("coder-"), pod.log()

    agent.kill()  # the agent's container crashes in place
    await exit_of(agent)
    agent = pod.agent()
    await pod.turns(5)
    first, second = pod.told("connected")
    assert (first["connected"], first["at"]) == (0, None)
    assert second["how"] == "Restarted" and second["connected"] == second["lines"] > 0

    sidecar.kill()  # the sidecar's container crashes; the agent lives on
    await exit_of(sidecar)
    sidecar = await pod.sidecar()
    await until(lambda: (pod.log().count("agent connected")) >= 3, what=pod.log)
    await pod.turns(5)
    await asyncio.sleep(0.3)
    name = await site.checkpoint()
    assert name.startswith("coder-"), f"{name}: {pod.log()}"
    assert len(pod.told("connected")) == 2

    await terminate(pod, agent, sidecar)
    assert site.recorder.calls_of("released")[-1] == ("a", False), pod.log()
    steps = [each["step"] for each in pod.told("step")]
    assert len(steps) - len(set(steps)) <= 1, "only the step in flight at the crash may run again"

    successor = site.pod("b", config_hash="cd" * 32)
    assert await successor.restore() == 0, successor.log()
    assert "ConfigurationChanged" in successor.log() and "ConfigurationChanged" not in pod.log()
    log_before = (pod.folder / "state" / "log").read_text()
    assert (successor.folder / "state" / "log").read_text() == log_before
    sidecar = await successor.sidecar()
    agent = successor.agent()
    await successor.turns(3)
    (third,) = successor.told("connected")
    assert third["how"] == "Restored" and third["connected"] == third["lines"] == len(log_before.splitlines())
    assert successor.told("step")[0]["step"] == len(steps) - (len(steps) - len(set(steps)))
    await terminate(successor, agent, sidecar)
    told = [(each.outcome, each.config_changed) for each in site.recorder.calls_of("restored")]
    assert told == [("Fresh", False), ("Restored", True)]


@pytest.mark.timeout(180)
async def test_a_container_that_starts_again_after_the_end_of_its_run_begins_the_next_one(site: Site) -> None:
    pod = site.pod("a")
    (pod.folder / "agent.py").write_text(
        AGENT_PROGRAM.replace("range(100000)", "range(3)") + "agent.finish()\ntell(finished=agent.epoch)\n"
    )
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    for run in (1, 2):  # as a Deployment's container does, whose restartPolicy is Always
        assert await exit_of(pod.agent()) == 0, pod.log()
        assert [each["finished"] for each in pod.told("finished")] == list(range(1, run + 1)), pod.log()
    sidecar.kill()  # the sidecar's container, too
    await exit_of(sidecar)
    sidecar = await pod.sidecar()
    assert await exit_of(pod.agent()) == 0, pod.log()
    assert [each["step"] for each in pod.told("step")] == [0, 1, 2] * 3
    assert {(each["connected"], each["at"]) for each in pod.told("connected")} == {(0, None)}
    assert [each.outcome for each in site.recorder.calls_of("restored")] == ["Fresh"] * 3
    sidecar.send_signal(signal.SIGTERM)
    assert await exit_of(sidecar) == 0, pod.log()
    assert site.recorder.calls_of("released")[-1] == ("a", True), pod.log()


@pytest.mark.timeout(180)
async def test_an_end_without_operator_is_committed_before_the_successor_starts(site: Site) -> None:
    pod = site.pod("a")
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    agent = pod.agent()
    await pod.turns(5)
    assert (await site.checkpoint()).startswith("coder-")
    await asyncio.sleep(0.5)  # the reserve of URLs is filled again
    await pod.turns(5)
    await site.stop()
    await terminate(pod, agent, sidecar)
    done = len({each["step"] for each in pod.told("step")})
    await site.start()

    successor = site.pod("b")
    site.recorder.calls.clear()
    site.pod_resolver.predecessors["a"] = PredecessorState(PodState.GONE, NodeState.READY)
    waiting = asyncio.ensure_future(successor.restore())
    assert await waiting == 0, successor.log()
    assert len((successor.folder / "state" / "log").read_text().splitlines()) == done
    sidecar, agent = await successor.sidecar(), successor.agent()
    await successor.turns(3)
    assert successor.told("connected")[0]["connected"] == done
    await terminate(successor, agent, sidecar)


@pytest.mark.timeout(180)
async def test_memory_at_rest_and_at_work(site: Site) -> None:
    pod = site.pod("a")
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    await asyncio.sleep(1)
    idle = rss(sidecar, "VmRSS")
    assert idle < IDLE_BYTES
    for number in range(6):
        (pod.folder / "state" / f"weights{number}").write_bytes(os.urandom(64 << 20))
    for number in range(3000):
        (pod.folder / "state" / f"small{number}").write_bytes(os.urandom(500))
    name = await site.checkpoint()
    assert name.startswith("coder-"), f"{name} {pod.log()}"
    peak = rss(sidecar, "VmHWM")
    assert peak < WORK_BYTES
    await asyncio.sleep(0.5)
    at_rest = rss(sidecar, "VmRSS")
    sidecar.terminate()
    assert await exit_of(sidecar) == 0
    assert at_rest < IDLE_BYTES, f"{at_rest >> 20} MiB after the work"
    print(f"at rest {idle >> 20} MiB, at work {peak >> 20} MiB, afterwards {at_rest >> 20} MiB")

    successor = site.pod("b")
    assert await successor.restore() == 0, successor.log()
    for each in (pod.folder / "state").iterdir():
        if each.is_file():
            assert (successor.folder / "state" / each.name).read_bytes() == each.read_bytes()
