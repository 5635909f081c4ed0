"""The scenarios of the main job: what is done to the agents, and what was observed.

The demo and the suite share them; e2e.checks.report judges what was observed.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from e2e.checks import checks as proof
from e2e.harness.installation import BUCKET, SYSTEM, Installation, agent_state, condition
from e2e.harness.kube import until

RESEARCHER, TWIN, CODER = "researcher", "twin", "coder"
UNDER_WAY = ("Quiescing", "Capturing", "Uploading", "Committing")
"""Reasons of a checkpoint that its agent's sidecar is making."""
Say = Callable[[str], None]


@dataclass
class Move:
    """One reschedule of the researcher."""

    node: str
    released: float  # when the predecessor had let go: see released_at
    running: float  # when the successor's agent process began
    calls_repeated: int
    turns_lost: int
    trigger: str  # of the predecessor's last checkpoint


@dataclass
class Observations:
    """What the scenes saw and the proofs need."""

    on_demand: dict[str, Any] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    kills: int = 0
    repeated_by_kills: int = 0
    operator_before: int = 0
    operator_after: int = 0
    operator_killed_at: float = 0.0
    operator_stage: str = ""  # of the checkpoint, when the kill was sent
    operator_checkpoint: str = ""  # how it ended
    operator_committed: float = 0.0
    corrupted_key: str = ""
    corrupted_refusal: str = ""
    corrupted_agent_started: bool = True
    mended: bool = False


# -- scenes -----------------------------------------------------------------------------------------------------


def protect(lab: Installation) -> None:
    """Deploy the researcher, its unprotected twin and the coder, and see them work."""
    lab.deploy_researcher(RESEARCHER, protected=True)
    lab.deploy_researcher(TWIN, protected=False)
    lab.agents.manifest("coder.yaml", NAMESPACE=str(lab.agents.namespace))
    for app in (RESEARCHER, TWIN, CODER):
        lab.wait_running(app)
    for app in (RESEARCHER, TWIN, CODER):
        lab.wait_turns(app, 3)


def kill_in_place(lab: Installation, facts: Observations) -> None:
    """The researcher is killed in place: what it asks again is what was in flight."""
    lab.wait_checkpoint(RESEARCHER, 0)
    before = proof.calls_repeated(lab.world.calls(RESEARCHER))
    restart_in_place(lab, RESEARCHER)
    facts.kills += 1
    facts.repeated_by_kills += proof.calls_repeated(lab.world.calls(RESEARCHER)) - before


def restart_in_place(lab: Installation, app: str) -> None:
    """SIGKILL to the agent's processes inside its container; the pod stays, the container restarts and works on."""
    pod = lab.wait_running(app)
    starts = len(proof.starts(lab.world.reports(app)))
    lab.nodes.kill_container(str(lab.agents.namespace), pod["metadata"]["name"], "agent")
    until(f"{app} restarts in its pod", lambda: len(proof.starts(lab.world.reports(app))) > starts, seconds=90)
    lab.wait_turns(app, 3)


def drain_every_node(lab: Installation, facts: Observations, say: Say) -> None:
    """Drain each node that holds agents; all of them come back on the other."""
    for _ in range(2):
        pods = {app: lab.wait_running(app) for app in (RESEARCHER, TWIN, CODER)}
        node = pods[RESEARCHER]["spec"]["nodeName"]
        calls = proof.calls_repeated(lab.world.calls(RESEARCHER))
        starts = len(proof.starts(lab.world.reports(RESEARCHER)))
        say(f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data")
        try:
            lab.drain(node)
            for app, pod in pods.items():
                if pod["spec"]["nodeName"] == node:
                    back = lab.wait_returned(app, pod["metadata"]["uid"])
                    say(f"{app} is back on {back['spec']['nodeName']}")
        finally:
            lab.uncordon(node)
        reports = lab.world.reports(RESEARCHER)
        back_again = proof.starts(reports)[starts:]
        running = float(back_again[0]["time"])
        last = max((item for item in lab.checkpoints(RESEARCHER) if committed_at(item) < running), key=committed_at)
        lab.wait_turns(RESEARCHER, 3)
        repeated = proof.calls_repeated(lab.world.calls(RESEARCHER)) - calls
        lost = sum(proof.turns_lost(reports)[-len(back_again) :])
        trigger = str(last["status"]["trigger"]["type"])
        released = released_at(last, reports[: reports.index(back_again[0])])
        facts.moves.append(Move(node, released, running, repeated, lost, trigger))
        lab.wait_turns(CODER, 2)


def kill_operator_during_checkpoint(lab: Installation, facts: Observations, say: Say) -> None:
    """SIGKILL to the operator while a checkpoint is under way: the agent works on, nothing committed is lost.

    The agent's processes stand still, so that the checkpoint waits for it, until the signal has been sent: a checkpoint
    of one percent is over sooner than a process on another machine is found and killed.
    """
    lab.checkpoint_now(RESEARCHER)  # none is due by time for some seconds
    facts.operator_before = lab.newest_sequence(RESEARCHER)
    lab.wait_turns(RESEARCHER, 1)  # something has changed
    system, space = lab.kubectl.within(SYSTEM), str(lab.agents.namespace)
    operator = next(
        item["metadata"]["name"]
        for item in system.items("pods", "app.kubernetes.io/component=operator")
        if item["status"]["phase"] == "Running"
    )
    agent = lab.wait_running(RESEARCHER)["metadata"]["name"]
    lab.nodes.freeze_container(space, agent, "agent")
    try:
        made = lab.agents(
            *("create", "-f", "-", "-o", "name"),
            stdin='{"apiVersion":"savepoint.dev/v1alpha1","kind":"AgentCheckpoint",'
            '"metadata":{"generateName":"researcher-"},"spec":{"agent":"researcher"}}',
        ).strip()
        until("the checkpoint is under way", lambda: _under_way(lab.agents.get(made)), seconds=30, every=0.05)
        facts.operator_stage = _reason(lab.agents.get(made))
        say(f"the agent stands still, its checkpoint is {facts.operator_stage}; kill -9 the operator")
        lab.nodes.kill_container(SYSTEM, operator, "operator")
        facts.operator_killed_at = time.time()
    finally:
        lab.nodes.thaw_container(space, agent, "agent")
    lab.wait_turns(RESEARCHER, 3)
    until("the checkpoint ends", lambda: _ended(lab.agents.get(made)), seconds=150)
    ended = lab.agents.get(made)
    facts.operator_checkpoint, facts.operator_committed = _reason(ended), committed_at(ended)
    after = lab.checkpoint_now(RESEARCHER)
    facts.operator_after = int(after["status"]["sequence"])


def corrupt_and_mend(lab: Installation, facts: Observations, say: Say) -> None:
    """One bit of one stored object flips while no agent runs; the restore refuses it; the bit flips back."""
    old = lab.wait_running(RESEARCHER)["metadata"]["uid"]
    lab.agents("scale", f"deployment/{RESEARCHER}", "--replicas=0")
    until("the researcher is gone", lambda: not lab.agents.items("pods", f"app={RESEARCHER}"), seconds=120)
    prefix = f"{lab.agents.namespace}/{RESEARCHER}/packs/"
    newest = max(lab.bucket.list_objects(BUCKET, prefix=prefix), key=lambda item: str(item.last_modified))
    facts.corrupted_key = key = str(newest.object_name)
    good = _read(lab, key)
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    lab.bucket.put_object(BUCKET, key, io.BytesIO(bytes(bad)), len(bad))
    say(f"flipped one bit of {key}")
    lab.agents("scale", f"deployment/{RESEARCHER}", "--replicas=1")

    def refused() -> str:
        found = [condition(item, "Succeeded") for item in lab.restores(RESEARCHER)]
        return next((str(entry["message"]) for entry in found if entry.get("reason") == "IntegrityError"), "")

    facts.corrupted_refusal = until("the restore refuses", refused, seconds=120)
    pod = lab.pod(RESEARCHER)
    facts.corrupted_agent_started = pod is None or "waiting" not in agent_state(pod)
    say(f"refused: {facts.corrupted_refusal}")
    lab.bucket.put_object(BUCKET, key, io.BytesIO(good), len(good))
    say("put it back")
    lab.wait_returned(RESEARCHER, old, seconds=240)
    facts.mended = lab.wait_turns(RESEARCHER, 3) > 0


# -- looking ----------------------------------------------------------------------------------------------------


def committed_at(item: dict[str, Any]) -> float:
    """When it was committed; a request that found nothing changed committed nothing."""
    completion = item["status"].get("timing", {}).get("completion")
    return datetime.fromisoformat(completion).timestamp() if completion else 0.0


def released_at(last: dict[str, Any], before: list[proof.Report]) -> float:
    """When a predecessor had let go, in seconds since 1970: from then on its successor could have run.

    ``last``: its last checkpoint. ``before``: what it had reported, at least once.

    That is the commit of ``last``, if the pod itself offered it to an operator: nothing of the pod follows it. A
    checkpoint that was left because no operator could be reached is committed by the next one, maybe long after the pod
    has gone: counted from that commit, the wait for an operator would be hidden. It is known by its timing: the times
    of its pod come with an offer, and who adopts it has none. When such a pod let go nobody has kept, since its object
    goes with it. So it counts from its agent's last report, which comes before the agent's end: too long by what it did
    since, the capture and the upload, and never too short.
    """
    if "start" in last["status"]["timing"]:
        return committed_at(last)
    return min(committed_at(last), float(before[-1]["time"]))


def _reason(item: dict[str, Any]) -> str:
    return str(condition(item, "Ready").get("reason"))


def _under_way(item: dict[str, Any]) -> bool:
    return condition(item, "Ready").get("reason") in UNDER_WAY


def _ended(item: dict[str, Any]) -> bool:
    ready = condition(item, "Ready")
    return ready.get("status") == "True" or ready.get("reason") not in (None, "Pending", *UNDER_WAY)


def _read(lab: Installation, key: str) -> bytes:
    answer = lab.bucket.get_object(BUCKET, key)
    try:
        return bytes(answer.read())
    finally:
        answer.close()
        answer.release_conn()
