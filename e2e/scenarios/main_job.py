"""The scenarios of the main job: faults injected into the sample agents, and what was observed.

Each function performs one scenario and returns its observations; ``e2e.checks.report`` judges them. The demo and the
test suite share these functions.
"""

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from e2e.checks import checks
from e2e.harness.installation import BUCKET, SYSTEM, Installation, agent_state, condition
from e2e.harness.kube import until

RESEARCHER, TWIN, CODER = "researcher", "twin", "coder"
IN_PROGRESS = ("Quiescing", "Capturing", "Uploading", "Committing")
"""Reasons of a checkpoint that its agent's sidecar is working on."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class ContainerKill:
    """The researcher's container was killed in place."""

    calls_repeated: int
    """Number of completed model calls that were repeated."""


@dataclass(frozen=True)
class Reschedule:
    """The researcher moved to another node after a drain."""

    node: str
    """The drained node."""
    released: float
    """Time at which the predecessor released its epoch, in seconds since 1970: see ``released_at``."""
    running: float
    """Time at which the successor's agent process started, in seconds since 1970."""
    calls_repeated: int
    turns_lost: int
    trigger: str
    """Trigger of the predecessor's last checkpoint."""

    @property
    def final_checkpoint_is_complete(self) -> bool:
        """True if the last checkpoint was taken for the drain, or the agent did nothing after it.

        If SIGTERM comes between the order of an interval checkpoint and the agent's safe point, its last flush is of
        the same safe point, and nothing is left to commit.
        """
        if self.trigger in ("Drain", "Shutdown"):
            return True
        return bool(self.trigger) and not (self.turns_lost or self.calls_repeated)


@dataclass(frozen=True)
class OperatorKill:
    """The operator was killed while a checkpoint was in progress."""

    sequence_before: int
    sequence_after: int
    killed_at: float
    """Seconds since 1970."""
    phase: str
    """Reason of the checkpoint when the kill was sent."""
    outcome: str
    """Reason of the checkpoint when it ended."""
    committed_at: float
    """Seconds since 1970; 0 if it was never committed."""


@dataclass(frozen=True)
class Corruption:
    """One stored object was damaged while no agent ran, and repaired afterwards."""

    key: str
    refusal: str
    """Message of the restore that refused it."""
    agent_started: bool
    """The agent's container started although its state was damaged."""
    recovered: bool
    """After the repair the agent continued."""


# -- scenarios --------------------------------------------------------------------------------------------------


def deploy_agents(installation: Installation) -> None:
    """Deploy the researcher, its unprotected twin and the coder, and wait until all three work."""
    installation.deploy_researcher(RESEARCHER, protected=True)
    installation.deploy_researcher(TWIN, protected=False)
    installation.agents.manifest("coder.yaml", NAMESPACE=str(installation.agents.namespace))
    for app in (RESEARCHER, TWIN, CODER):
        installation.wait_running(app)
    for app in (RESEARCHER, TWIN, CODER):
        installation.wait_turns(app, 3)


def kill_in_place(installation: Installation) -> ContainerKill:
    """Kill the researcher's container in place; only a call that was in flight may be repeated."""
    installation.wait_checkpoint(RESEARCHER, 0)
    before = checks.calls_repeated(installation.services.calls(RESEARCHER))
    restart_in_place(installation, RESEARCHER)
    return ContainerKill(checks.calls_repeated(installation.services.calls(RESEARCHER)) - before)


def restart_in_place(installation: Installation, app: str) -> None:
    """Send SIGKILL to the agent's processes inside its container; the pod stays and the container restarts."""
    pod = installation.wait_running(app)
    starts = len(checks.starts(installation.services.reports(app)))
    installation.nodes.kill_container(str(installation.agents.namespace), pod["metadata"]["name"], "agent")
    until(
        f"{app} restarts in its pod",
        lambda: len(checks.starts(installation.services.reports(app))) > starts,
        seconds=90,
    )
    installation.wait_turns(app, 3)


def drain_every_node(installation: Installation, say: Say) -> list[Reschedule]:
    """Drain each worker in turn; every agent on it must continue on the other one."""
    return [_drain_node_of_researcher(installation, say) for _ in range(2)]


def _drain_node_of_researcher(installation: Installation, say: Say) -> Reschedule:
    services = installation.services
    pods = {app: installation.wait_running(app) for app in (RESEARCHER, TWIN, CODER)}
    node = pods[RESEARCHER]["spec"]["nodeName"]
    calls = checks.calls_repeated(services.calls(RESEARCHER))
    starts = len(checks.starts(services.reports(RESEARCHER)))
    say(f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data")
    try:
        installation.drain(node)
        for app, pod in pods.items():
            if pod["spec"]["nodeName"] == node:
                returned = installation.wait_returned(app, pod["metadata"]["uid"])
                say(f"{app} runs again, on {returned['spec']['nodeName']}")
    finally:
        installation.uncordon(node)
    reports = services.reports(RESEARCHER)
    new_starts = checks.starts(reports)[starts:]
    running = float(new_starts[0]["time"])
    earlier = (item for item in installation.checkpoints(RESEARCHER) if committed_at(item) < running)
    final = max(earlier, key=committed_at)
    installation.wait_turns(RESEARCHER, 3)
    repeated = checks.calls_repeated(services.calls(RESEARCHER)) - calls
    lost = sum(checks.turns_lost(reports)[-len(new_starts) :])
    released = released_at(final, reports[: reports.index(new_starts[0])])
    installation.wait_turns(CODER, 2)
    return Reschedule(node, released, running, repeated, lost, str(final["status"]["trigger"]["type"]))


def kill_operator_during_checkpoint(installation: Installation, say: Say) -> OperatorKill:
    """Send SIGKILL to the operator while a checkpoint is in progress; the agent must continue and lose nothing.

    The agent's processes are stopped until the signal has been sent, so that the checkpoint waits for them: otherwise a
    checkpoint of 1 % of the state finishes before a process on another node can be found and killed.
    """
    agents = installation.agents
    installation.checkpoint_now(RESEARCHER)  # the interval starts again, so no scheduled checkpoint interferes
    sequence_before = installation.newest_sequence(RESEARCHER)
    installation.wait_turns(RESEARCHER, 1)  # so that there is something to store
    operator = _running_operator(installation)
    agent = installation.wait_running(RESEARCHER)["metadata"]["name"]
    installation.nodes.freeze_container(str(agents.namespace), agent, "agent")
    try:
        name = installation.request_checkpoint(RESEARCHER)
        until("the checkpoint is in progress", lambda: _in_progress(agents.get(name)), seconds=30, every=0.05)
        phase = _reason(agents.get(name))
        say(f"the agent is stopped and its checkpoint is {phase}; kill -9 the operator")
        installation.nodes.kill_container(SYSTEM, operator, "operator")
        killed_at = time.time()
    finally:
        installation.nodes.thaw_container(str(agents.namespace), agent, "agent")
    installation.wait_turns(RESEARCHER, 3)
    until("the checkpoint ends", lambda: _ended(agents.get(name)), seconds=150)
    ended = agents.get(name)
    after = installation.checkpoint_now(RESEARCHER)
    return OperatorKill(
        sequence_before=sequence_before,
        sequence_after=int(after["status"]["sequence"]),
        killed_at=killed_at,
        phase=phase,
        outcome=_reason(ended),
        committed_at=committed_at(ended),
    )


def _running_operator(installation: Installation) -> str:
    pods = installation.kubectl.within(SYSTEM).items("pods", "app.kubernetes.io/component=operator")
    return next(str(pod["metadata"]["name"]) for pod in pods if pod["status"]["phase"] == "Running")


def corrupt_and_repair(installation: Installation, say: Say) -> Corruption:
    """Flip one bit of one stored object while no agent runs; the restore must refuse it; then flip it back."""
    agents = installation.agents
    old_uid = installation.wait_running(RESEARCHER)["metadata"]["uid"]
    agents("scale", f"deployment/{RESEARCHER}", "--replicas=0")
    until("the researcher's pod is deleted", lambda: not agents.items("pods", f"app={RESEARCHER}"), seconds=120)
    prefix = f"{agents.namespace}/{RESEARCHER}/packs/"
    newest = max(installation.bucket.list_objects(BUCKET, prefix=prefix), key=lambda item: str(item.last_modified))
    key = str(newest.object_name)
    good = _read(installation, key)
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    installation.bucket.put_object(BUCKET, key, io.BytesIO(bytes(bad)), len(bad))
    say(f"flipped one bit of {key}")
    agents("scale", f"deployment/{RESEARCHER}", "--replicas=1")

    def refused() -> str:
        conditions = [condition(item, "Succeeded") for item in installation.restores(RESEARCHER)]
        return next((str(each["message"]) for each in conditions if each.get("reason") == "IntegrityError"), "")

    refusal = until("the restore refuses the damaged object", refused, seconds=120)
    pod = installation.pod(RESEARCHER)
    started = pod is None or "waiting" not in agent_state(pod)
    say(f"refused: {refusal}")
    installation.bucket.put_object(BUCKET, key, io.BytesIO(good), len(good))
    say("flipped the bit back")
    installation.wait_returned(RESEARCHER, old_uid, seconds=240)
    return Corruption(key, refusal, started, recovered=installation.wait_turns(RESEARCHER, 3) > 0)


# -- queries ----------------------------------------------------------------------------------------------------


def committed_at(item: dict[str, Any]) -> float:
    """Return when a checkpoint was committed, in seconds since 1970; 0 if nothing was committed."""
    completion = item["status"].get("timing", {}).get("completion")
    return datetime.fromisoformat(completion).timestamp() if completion else 0.0


def released_at(final: dict[str, Any], before: list[checks.Report]) -> float:
    """Return when a predecessor released its epoch, in seconds since 1970: from then on its successor could run.

    Usually that is the commit of its final checkpoint, since a pod does nothing after it. A checkpoint that was left in
    the store because no operator could be reached is committed by the next operator, perhaps long after the pod ended;
    counting from that commit would hide the wait for an operator. Such a checkpoint has no start time in its status,
    because those times come with a pod's own offer. When its pod released is not recorded, so the agent's last report
    is used instead: earlier than the release by the time that capture and upload took, and never later.

    Args:
        final: The predecessor's final checkpoint, an AgentCheckpoint.
        before: What the predecessor reported, at least one report.
    """
    if "start" in final["status"]["timing"]:
        return committed_at(final)
    return min(committed_at(final), float(before[-1]["time"]))


def slowest_move(moves: Iterable[Reschedule]) -> float:
    """Return the longest time from release to running, in seconds; NaN without moves."""
    return max((move.running - move.released for move in moves), default=float("nan"))


def _reason(item: dict[str, Any]) -> str:
    return str(condition(item, "Ready").get("reason"))


def _in_progress(item: dict[str, Any]) -> bool:
    return condition(item, "Ready").get("reason") in IN_PROGRESS


def _ended(item: dict[str, Any]) -> bool:
    ready = condition(item, "Ready")
    return ready.get("status") == "True" or ready.get("reason") not in (None, "Pending", *IN_PROGRESS)


def _read(installation: Installation, key: str) -> bytes:
    answer = installation.bucket.get_object(BUCKET, key)
    try:
        return bytes(answer.read())
    finally:
        answer.close()
        answer.release_conn()
