"""The lifecycle of a pod with its real processes: init container, native sidecar and SDK agent, over TLS and S3.

Only kubelet and the API server are missing: the test starts and ends the processes as kubelet would.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from savepoint.contract.control_protocol import MovedRoot, PolicyTerms
from savepoint_operator.model.views import NodeState, PodState, PredecessorState

from tests.polling import until
from tests.servers.s3 import S3Server
from tests.servers.sidecar_pod import (
    AGENT,
    AGENT_PROGRAM,
    IDLE_BYTES,
    WORK_BYTES,
    LocalControlSide,
    LocalPod,
    exit_of,
    local_control_side,
    rss,
)


@pytest.fixture
async def control(s3_versitygw: S3Server, tmp_path: Path) -> AsyncIterator[LocalControlSide]:
    async with local_control_side(s3_versitygw, tmp_path) as control:
        yield control


async def terminate(pod: LocalPod, agent: "subprocess.Popen[bytes]", sidecar: "subprocess.Popen[bytes]") -> None:
    """End the pod as kubelet does: run the preStop hook and stop the agent at once, then stop the sidecar."""
    hook = pod.start("-m", "savepoint_sidecar.main", "prestop")
    agent.send_signal(signal.SIGTERM)
    assert await exit_of(hook) == 0
    assert await exit_of(agent) == 128 + signal.SIGTERM, pod.log()
    sidecar.send_signal(signal.SIGTERM)
    assert await exit_of(sidecar) == 0, pod.log()


@pytest.mark.timeout(180)
async def test_an_agent_survives_crashes_and_moves_to_another_pod(control: LocalControlSide) -> None:
    pod = control.pod("a")
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    agent = pod.agent()
    await pod.await_iterations(5)
    assert (await control.checkpoint()).startswith("coder-"), pod.log()

    agent.kill()  # the agent's container crashes and is restarted
    await exit_of(agent)
    agent = pod.agent()
    await pod.await_iterations(5)
    first, second = pod.reports("connected")
    assert (first["connected"], first["at"]) == (0, None)
    assert second["how"] == "Restarted" and 0 < second["connected"] <= second["lines"], "its files stay"

    sidecar.kill()  # the sidecar's container crashes; the agent keeps running
    await exit_of(sidecar)
    sidecar = await pod.sidecar()
    await until(lambda: (pod.log().count("agent connected")) >= 3, message=pod.log)
    await pod.await_iterations(5)
    await asyncio.sleep(0.3)
    name = await control.checkpoint()
    assert name.startswith("coder-"), f"{name}: {pod.log()}"
    assert len(pod.reports("connected")) == 2

    await terminate(pod, agent, sidecar)
    assert control.recorder.calls_of("released")[-1] == ("a", False), pod.log()
    steps = [each["step"] for each in pod.reports("step")]
    assert len(steps) - len(set(steps)) <= 1, "only the step in flight at the crash may run again"

    successor = control.pod("b", config_hash="cd" * 32)
    assert await successor.restore() == 0, successor.log()
    assert "ConfigurationChanged" in successor.log() and "ConfigurationChanged" not in pod.log()
    log_before = (pod.folder / "state" / "log").read_text()
    assert (successor.folder / "state" / "log").read_text() == log_before
    sidecar = await successor.sidecar()
    agent = successor.agent()
    await successor.await_iterations(3)
    (third,) = successor.reports("connected")
    assert third["how"] == "Restored" and third["connected"] == third["lines"] == len(log_before.splitlines())
    assert successor.reports("step")[0]["step"] == len(steps) - (len(steps) - len(set(steps)))
    await terminate(successor, agent, sidecar)
    reported = [(each.outcome, each.config_changed) for each in control.recorder.calls_of("restore_ended")]
    assert reported == [("Fresh", False), ("Restored", True)]


@pytest.mark.timeout(180)
async def test_a_container_that_restarts_after_a_completed_run_starts_the_next_run(
    control: LocalControlSide,
) -> None:
    pod = control.pod("a")
    (pod.folder / "agent.py").write_text(
        AGENT_PROGRAM.replace("range(100000)", "range(3)") + "agent.finish()\nreport(finished=agent.epoch)\n"
    )
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    for run in (1, 2):  # like a Deployment's container, whose restartPolicy is Always
        assert await exit_of(pod.agent()) == 0, pod.log()
        assert [each["finished"] for each in pod.reports("finished")] == list(range(1, run + 1)), pod.log()
    sidecar.kill()  # the sidecar's container restarts, too
    await exit_of(sidecar)
    sidecar = await pod.sidecar()
    assert await exit_of(pod.agent()) == 0, pod.log()
    assert [each["step"] for each in pod.reports("step")] == [0, 1, 2] * 3
    assert {(each["connected"], each["at"]) for each in pod.reports("connected")} == {(0, None)}
    assert [each.outcome for each in control.recorder.calls_of("restore_ended")] == ["Fresh"] * 3
    sidecar.send_signal(signal.SIGTERM)
    assert await exit_of(sidecar) == 0, pod.log()
    assert control.recorder.calls_of("released")[-1] == ("a", True), pod.log()


@pytest.mark.timeout(180)
async def test_a_final_checkpoint_without_an_operator_is_committed_before_the_successor_starts(
    control: LocalControlSide,
) -> None:
    pod = control.pod("a")
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    agent = pod.agent()
    await pod.await_iterations(5)
    assert (await control.checkpoint()).startswith("coder-")
    await asyncio.sleep(0.5)  # the sidecar refills its reserve of URLs
    await pod.await_iterations(5)
    await control.stop()
    await terminate(pod, agent, sidecar)
    finished = len({each["step"] for each in pod.reports("step")})
    await control.start()

    successor = control.pod("b")
    control.recorder.calls.clear()
    control.pod_resolver.predecessors["a"] = PredecessorState(PodState.GONE, NodeState.READY)
    waiting = asyncio.ensure_future(successor.restore())
    assert await waiting == 0, successor.log()
    assert len((successor.folder / "state" / "log").read_text().splitlines()) == finished
    sidecar, agent = await successor.sidecar(), successor.agent()
    await successor.await_iterations(3)
    assert successor.reports("connected")[0]["connected"] == finished
    await terminate(successor, agent, sidecar)


@pytest.mark.timeout(180)
async def test_the_memory_of_the_sidecar_is_bounded(control: LocalControlSide) -> None:
    pod = control.pod("a")
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    await asyncio.sleep(1)
    idle = rss(sidecar, "VmRSS")
    assert idle < IDLE_BYTES
    for number in range(6):
        (pod.folder / "state" / f"weights{number}").write_bytes(os.urandom(64 << 20))
    for number in range(3000):
        (pod.folder / "state" / f"small{number}").write_bytes(os.urandom(500))
    name = await control.checkpoint()
    assert name.startswith("coder-"), f"{name} {pod.log()}"
    peak = rss(sidecar, "VmHWM")
    assert peak < WORK_BYTES
    await asyncio.sleep(0.5)
    idle_again = rss(sidecar, "VmRSS")
    sidecar.terminate()
    assert await exit_of(sidecar) == 0
    assert idle_again < IDLE_BYTES, f"{idle_again >> 20} MiB after the checkpoint"
    print(f"idle {idle >> 20} MiB, peak {peak >> 20} MiB, after the checkpoint {idle_again >> 20} MiB")

    successor = control.pod("b")
    assert await successor.restore() == 0, successor.log()
    for each in (pod.folder / "state").iterdir():
        if each.is_file():
            assert (successor.folder / "state" / each.name).read_bytes() == each.read_bytes()


@pytest.mark.timeout(180)
async def test_a_pod_whose_folder_has_another_path_is_refused_until_the_policy_says_that_it_moved(
    control: LocalControlSide,
) -> None:
    pod = control.pod("a")
    assert await pod.restore() == 0, pod.log()
    sidecar = await pod.sidecar()
    agent = pod.agent()
    await pod.await_iterations(3)
    await terminate(pod, agent, sidecar)
    before = (pod.folder / "state" / "log").read_text()

    renamed = control.pod("b")
    renamed.root = "moved"
    assert await renamed.restore() != 0
    assert "StateLeftBehind" in renamed.log() and "{from: /data, to: /moved}" in renamed.log()
    assert list((renamed.folder / "state").iterdir()) == []

    control.register(AGENT, "b", policy=PolicyTerms(moved=(MovedRoot("data", "moved"),)))
    assert await renamed.restore() == 0, renamed.log()  # kubelet starts the container again
    assert (renamed.folder / "state" / "log").read_text() == before
    outcomes = [each.outcome for each in control.recorder.calls_of("restore_ended")]
    assert outcomes == ["Fresh", "StateLeftBehind", "Restored"]
