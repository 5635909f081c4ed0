"""The scenes of the main job: what is done to the agents, and what is computed from it.

Shared by the demo and the suite.
"""

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from e2e import proofs as proof
from e2e.kube import until
from e2e.lab import BUCKET, SYSTEM, Lab, agent_state, condition
from e2e.laptop import Laptop
from e2e.proofs import Proof, Reference

RESEARCHER, TWIN, CODER = "researcher", "twin", "coder"
Say = Callable[[str], None]


@dataclass
class Move:
    """One reschedule of the researcher."""

    node: str
    released: float  # when the last checkpoint of the predecessor was committed
    running: float  # when the successor's agent process began
    calls_repeated: int


@dataclass
class Facts:
    """What the scenes saw and the proofs need."""

    on_demand: dict[str, Any] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    kills: int = 0
    repeated_by_kills: int = 0
    operator_before: int = 0
    operator_after: int = 0
    operator_checkpoint: str = ""
    corrupted_key: str = ""
    corrupted_refusal: str = ""
    corrupted_agent_started: bool = True
    mended: bool = False


# -- scenes -----------------------------------------------------------------------------------------------------


def protect(lab: Lab) -> None:
    """Deploy the researcher, its unprotected twin and the coder, and see them work."""
    lab.deploy_researcher(RESEARCHER, protected=True)
    lab.deploy_researcher(TWIN, protected=False)
    lab.agents.manifest("coder.yaml", NAMESPACE=str(lab.agents.namespace))
    for app in (RESEARCHER, TWIN, CODER):
        lab.wait_running(app)
    for app in (RESEARCHER, TWIN, CODER):
        lab.wait_turns(app, 3)


def kill_in_place(lab: Lab, facts: Facts) -> None:
    """SIGKILL to the agent's process inside its container; the pod stays, the container restarts."""
    pod = lab.wait_running(RESEARCHER)
    lab.wait_checkpoint(RESEARCHER, 0)
    before = proof.calls_repeated(lab.world.calls(RESEARCHER))
    starts = len(proof.starts(lab.world.reports(RESEARCHER)))
    lab.nodes.kill_container(str(lab.agents.namespace), pod["metadata"]["name"], "agent")
    until(
        "the researcher restarts in its pod",
        lambda: len(proof.starts(lab.world.reports(RESEARCHER))) > starts,
        seconds=90,
    )
    lab.wait_turns(RESEARCHER, 3)
    facts.kills += 1
    facts.repeated_by_kills += proof.calls_repeated(lab.world.calls(RESEARCHER)) - before


def drain_every_node(lab: Lab, facts: Facts, say: Say) -> None:
    """Drain each node that holds agents; all of them come back on the other."""
    for _ in range(2):
        pods = {app: lab.wait_running(app) for app in (RESEARCHER, TWIN, CODER)}
        node = pods[RESEARCHER]["spec"]["nodeName"]
        calls = proof.calls_repeated(lab.world.calls(RESEARCHER))
        say(f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data")
        try:
            lab.drain(node)
            for app, pod in pods.items():
                if pod["spec"]["nodeName"] == node:
                    back = lab.wait_returned(app, pod["metadata"]["uid"])
                    say(f"{app} is back on {back['spec']['nodeName']}")
        finally:
            lab.uncordon(node)
        start = proof.starts(lab.world.reports(RESEARCHER))[-1]
        released = max(at for item in lab.checkpoints(RESEARCHER) if (at := _at(item)) < start["time"])
        lab.wait_turns(RESEARCHER, 3)
        repeated = proof.calls_repeated(lab.world.calls(RESEARCHER)) - calls
        facts.moves.append(Move(node, released, start["time"], repeated))
        lab.wait_turns(CODER, 2)


def kill_operator_during_checkpoint(lab: Lab, facts: Facts) -> None:
    """SIGKILL to the operator while a checkpoint is under way: the agent works on, nothing committed is lost."""
    facts.operator_before = lab.newest_sequence(RESEARCHER)
    system = lab.kubectl.within(SYSTEM)
    pod = next(
        item
        for item in system.items("pods", "app.kubernetes.io/component=operator")
        if item["status"]["phase"] == "Running"
    )
    made = lab.agents(
        *("create", "-f", "-", "-o", "name"),
        stdin='{"apiVersion":"savepoint.dev/v1alpha1","kind":"AgentCheckpoint",'
        '"metadata":{"generateName":"researcher-"},"spec":{"agent":"researcher"}}',
    ).strip()
    until("the checkpoint is under way", lambda: _under_way(lab.agents.get(made)), seconds=30, every=0.05)
    lab.nodes.kill_container(SYSTEM, pod["metadata"]["name"], "operator")
    lab.wait_turns(RESEARCHER, 3)
    until("the checkpoint ends", lambda: _ended(lab.agents.get(made)), seconds=150)
    facts.operator_checkpoint = str(condition(lab.agents.get(made), "Ready").get("reason"))
    after = lab.checkpoint_now(RESEARCHER)
    facts.operator_after = int(after["status"]["sequence"])


def corrupt_and_mend(lab: Lab, facts: Facts, say: Say) -> None:
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


# -- proofs -----------------------------------------------------------------------------------------------------


def laptop_proofs(here: Laptop) -> list[Proof]:
    """Of the scene without a cluster: two kills, nothing asked twice but what was in flight."""
    reports, calls = here.world.reports(RESEARCHER), here.world.calls(RESEARCHER)
    reference = Reference.run(proof.last_turn(reports), mebibytes=here.mebibytes, stride=25, documents=2000)
    agrees = proof.state_agrees(reports, reference)
    repeated = proof.calls_repeated(calls)
    twice = proof.effects_repeated(here.world.effects(RESEARCHER))
    starts = proof.starts(reports)
    return [
        Proof("laptop: " + agrees.name, agrees.found, agrees.expected, agrees.holds),
        Proof("laptop: came back after each kill -9", f"{len(starts) - 1}", "2", len(starts) == 3),
        Proof(
            "laptop: completed model calls repeated", str(repeated), "at most 2, one in flight a kill", repeated <= 2
        ),
        Proof("laptop: side effects booked more than once", str(len(twice)), "0", not twice),
    ]


def cluster_proofs(lab: Lab, facts: Facts) -> list[Proof]:
    """Everything the scenes on the cluster are to show."""
    settings = lab.settings
    reports, twin = lab.world.reports(RESEARCHER), lab.world.reports(TWIN)
    reference = Reference.run(
        proof.last_turn(reports), mebibytes=settings.state_mib, stride=settings.row_stride, documents=settings.documents
    )
    moved = sum(move.calls_repeated for move in facts.moves)
    slowest = max((move.running - move.released for move in facts.moves), default=float("nan"))
    pauses = [item["status"]["timing"]["pauseMilliseconds"] for item in lab.checkpoints(RESEARCHER) if _paused(item)]
    twin_repeats = proof.calls_repeated(lab.world.calls(TWIN))
    twice = proof.effects_repeated(lab.world.effects(RESEARCHER))
    return [
        proof.state_agrees(reports, reference),
        proof.position_agrees(reports, reference),
        proof.conversation_grows(reports, reference),
        _work_lost(reports),
        Proof(
            "kill -9 in place: calls repeated",
            str(facts.repeated_by_kills),
            f"≤ {facts.kills}",
            facts.repeated_by_kills <= facts.kills,
        ),
        Proof("drains: nodes drained", str(len(facts.moves)), "2", len(facts.moves) == 2),
        Proof("drains: completed model calls repeated", str(moved), "0", moved == 0),
        Proof("drains: the twin's repeated calls beside it", str(twin_repeats), "more than 0", twin_repeats > 0),
        _twin_started_over(twin),
        Proof("side effects booked more than once", str(len(twice)), "0", not twice),
        Proof("release to agent running, slowest, seconds", f"{slowest:.1f}", "≤ 10", slowest <= 10, figure=True),
        _pause(pauses),
        _uploaded(lab, reports),
        *_sidecar_memory(lab),
        Proof(
            "operator killed: sequence before and after",
            f"{facts.operator_before} → {facts.operator_after} ({facts.operator_checkpoint})",
            "rises",
            facts.operator_after > facts.operator_before,
        ),
        Proof("corrupted object: named by the refusal", facts.corrupted_key[-12:], "yes", _named(facts)),
        Proof(
            "corrupted object: agent started on it",
            "yes" if facts.corrupted_agent_started else "no",
            "no",
            not facts.corrupted_agent_started,
        ),
        Proof("put back: the agent goes on", "yes" if facts.mended else "no", "yes", facts.mended),
        *proof.coder_goes_on(lab.world.reports(CODER)),
    ]


def _pause(pauses: list[int]) -> Proof:
    """The longest is often the one during which the operator was killed and started again on the same cores."""
    middle, longest = sorted(pauses)[len(pauses) // 2], max(pauses)
    name = "pause seen by the agent, median and longest, ms"
    return Proof(name, f"{middle}, {longest}", "≤ 100", longest <= 100, figure=True)


def _work_lost(reports: list[dict[str, Any]]) -> Proof:
    """Turns that had been reported and were gone through again, their steps replayed, by restart."""
    lost = proof.turns_lost(reports)
    return Proof("work lost: turns gone through again, by restart", str(lost), "0 after a drain", True, figure=True)


def _uploaded(lab: Lab, reports: list[dict[str, Any]]) -> Proof:
    """The median checkpoint: what went up beside what the turns before it had changed."""
    found = [item for item in lab.checkpoints(RESEARCHER) if _at(item) and "size" in item["status"]]
    sizes, pairs = (lab.settings.state_mib, lab.settings.row_stride), []
    for before, after in itertools.pairwise(found):
        changed = proof.bytes_changed(reports, _at(before), _at(after), mebibytes=sizes[0], stride=sizes[1])
        if changed:
            uploaded = int(after["status"]["size"]["uploaded"])
            pairs.append((uploaded / changed, uploaded, changed))
    ratio, uploaded, changed = sorted(pairs)[len(pairs) // 2] if pairs else (float("inf"), 0, 0)
    name = "bytes uploaded against bytes changed, median"
    return Proof(name, f"{uploaded} / {changed} = {ratio:.2f}", "≤ 2", ratio <= 2)


def _sidecar_memory(lab: Lab) -> list[Proof]:
    """Resident memory of the researcher's and of the coder's sidecar: now, between checkpoints, and at its most."""
    found = []
    for app, (what, goal) in ((CODER, ("VmRSS", 64)), (RESEARCHER, ("VmHWM", 192))):
        pod = lab.wait_running(app)["metadata"]["name"]
        status = lab.agents("exec", pod, "-c", "savepoint-sidecar", "--", "cat", "/proc/1/status")
        mebibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) / 1024
        name = f"memory of the {app}'s sidecar, {'at rest' if what == 'VmRSS' else 'at its most'}, MiB"
        found.append(Proof(name, f"{mebibytes:.0f}", f"≤ {goal}", mebibytes <= goal, figure=True))
    return found


def _named(facts: Facts) -> bool:
    return bool(facts.corrupted_key) and facts.corrupted_key.rsplit("/", 1)[-1] in facts.corrupted_refusal


def _paused(item: dict[str, Any]) -> bool:
    return item["status"].get("timing", {}).get("pauseMilliseconds") is not None


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def _at(item: dict[str, Any]) -> float:
    """When it was committed; a request that found nothing changed committed nothing."""
    completion = item["status"].get("timing", {}).get("completion")
    return _seconds(completion) if completion else 0.0


def _under_way(item: dict[str, Any]) -> bool:
    return condition(item, "Ready").get("reason") not in (None, "Pending")


def _ended(item: dict[str, Any]) -> bool:
    ready = condition(item, "Ready")
    return ready.get("status") == "True" or ready.get("reason") not in (
        None,
        *("Pending", "Quiescing", "Capturing", "Uploading", "Committing"),
    )


def _read(lab: Lab, key: str) -> bytes:
    answer = lab.bucket.get_object(BUCKET, key)
    try:
        return bytes(answer.read())
    finally:
        answer.close()
        answer.release_conn()


def _twin_started_over(reports: list[dict[str, Any]]) -> Proof:
    turns = [int(report["turn"]) for report in proof.starts(reports)[1:]]
    return Proof(
        "drains: the twin began again at turn", str(turns), "all 0, at least one", bool(turns) and not any(turns)
    )
