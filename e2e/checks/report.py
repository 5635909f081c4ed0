"""What the scenes have shown, as proofs: from the facts that they noted and from what the witnesses have.

It changes nothing; e2e.checks.checks does the counting.
"""

import itertools
from typing import Any

from e2e.checks import checks as proof
from e2e.checks.checks import Check, Reference, Report
from e2e.harness.installation import Installation
from e2e.harness.laptop import Laptop
from e2e.scenarios.main_job import CODER, RESEARCHER, TWIN, UNDER_WAY, Observations, committed_at

DRAINS = 2
LAPTOP_KILLS = 2


def laptop_proofs(here: Laptop) -> list[Check]:
    """Of the scene without a cluster: two kills, nothing asked twice but what was in flight."""
    reports, calls = here.world.reports(RESEARCHER), here.world.calls(RESEARCHER)
    turns = proof.last_turn(reports)
    reference = Reference.run(turns + 1, mebibytes=here.mebibytes, stride=25, documents=2000)
    repeated = proof.calls_repeated(calls)
    starts = proof.starts(reports)
    found = [
        proof.state_agrees(reports, reference),
        Check("came back after each kill -9", f"{len(starts) - 1}", str(LAPTOP_KILLS), len(starts) == 1 + LAPTOP_KILLS),
        Check(
            "completed model calls repeated",
            str(repeated),
            f"at most {LAPTOP_KILLS}, one in flight a kill",
            repeated <= LAPTOP_KILLS,
        ),
        proof.effects_counted(reports, here.world.effects(RESEARCHER), here.world.reports(RESEARCHER), reference),
        proof.effects_uncertain(reports),
    ]
    return [Check(f"laptop: {entry.name}", entry.found, entry.expected, entry.holds) for entry in found]


def cluster_proofs(lab: Installation, facts: Observations) -> list[Check]:
    """Everything the scenes on the cluster are to show."""
    settings = lab.settings
    before, effects = lab.world.reports(RESEARCHER), lab.world.effects(RESEARCHER)
    reports, twin = lab.world.reports(RESEARCHER), lab.world.reports(TWIN)
    reference = Reference.run(
        proof.last_turn(reports) + 1,
        mebibytes=settings.state_mib,
        stride=settings.row_stride,
        documents=settings.documents,
    )
    slowest = max((move.running - move.released for move in facts.moves), default=float("nan"))
    pauses = [item["status"]["timing"]["pauseMilliseconds"] for item in lab.checkpoints(RESEARCHER) if _paused(item)]
    return [
        proof.state_agrees(reports, reference),
        proof.position_agrees(reports, reference),
        proof.conversation_grows(reports, reference),
        proof.effects_counted(before, effects, reports, reference),
        proof.effects_uncertain(reports),
        work_lost(reports, facts),
        Check(
            "kill -9 in place: calls repeated",
            str(facts.repeated_by_kills),
            f"≤ {facts.kills}",
            facts.repeated_by_kills <= facts.kills,
        ),
        *drains(facts, proof.calls_repeated(lab.world.calls(TWIN))),
        _twin_started_over(twin),
        Check("release to agent running, slowest, seconds", f"{slowest:.1f}", "≤ 10", slowest <= 10, figure=True),
        _pause(pauses),
        _uploaded(lab, reports),
        *_sidecar_memory(lab),
        *operator_killed(facts),
        Check("corrupted object: named by the refusal", facts.corrupted_key[-12:], "yes", _named(facts)),
        Check(
            "corrupted object: agent started on it",
            "yes" if facts.corrupted_agent_started else "no",
            "no",
            not facts.corrupted_agent_started,
        ),
        Check("put back: the agent goes on", "yes" if facts.mended else "no", "yes", facts.mended),
        *proof.coder_goes_on(lab.world.reports(CODER)),
    ]


def work_lost(reports: list[Report], facts: Observations) -> Check:
    """Turns that had been reported and were gone through again, their steps replayed, by restart; none by a drain."""
    by_drains = [move.turns_lost for move in facts.moves]
    found = f"{proof.turns_lost(reports)}, of them by drains {by_drains}"
    name = "work lost: turns gone through again, by restart"
    return Check(name, found, "0 by a drain", len(by_drains) == DRAINS and not any(by_drains))


def drains(facts: Observations, by_twin: int) -> list[Check]:
    """Each node was drained; the protected agent asked nothing again, as its twin did."""
    moves, nodes = facts.moves, {move.node for move in facts.moves}
    repeated, triggers = sum(move.calls_repeated for move in moves), [move.trigger for move in moves]
    last = "the last checkpoint" if len(set(triggers)) == 1 else "the last checkpoints"
    return [
        Check("drains: nodes drained", str(len(nodes)), str(DRAINS), len(nodes) == DRAINS),
        Check(
            f"drains: what triggered {last}",
            ", ".join(triggers),
            "Drain, or Shutdown",
            bool(triggers) and set(triggers) <= {"Drain", "Shutdown"},
        ),
        Check("drains: completed model calls repeated", str(repeated), "0", bool(moves) and repeated == 0),
        Check("drains: the twin's repeated calls beside it", str(by_twin), "more than 0", by_twin > 0),
    ]


def operator_killed(facts: Observations) -> list[Check]:
    """The checkpoint was under way when the kill was sent, and is Ready by the next operator; and so is one after."""
    under_way = facts.operator_stage in UNDER_WAY and 0 < facts.operator_killed_at < facts.operator_committed
    stages = f"{facts.operator_stage or 'nothing'} → {facts.operator_checkpoint or 'nothing'}"
    if facts.operator_stage in UNDER_WAY and facts.operator_committed and not under_way:
        stages += ", committed before the kill"
    return [
        Check(
            "operator killed: the checkpoint then, and at its end",
            stages,
            "under way → Ready",
            under_way and facts.operator_checkpoint == "Ready",
        ),
        Check(
            "operator killed: sequence before and after",
            f"{facts.operator_before} → {facts.operator_after}",
            "rises by both",
            facts.operator_after >= facts.operator_before + 2,
        ),
    ]


def _pause(pauses: list[int]) -> Check:
    """The longest is often the one during which the operator was killed and started again on the same cores."""
    middle, longest = sorted(pauses)[len(pauses) // 2], max(pauses)
    name = "pause seen by the agent, median and longest, ms"
    return Check(name, f"{middle}, {longest}", "≤ 100", longest <= 100, figure=True)


def _uploaded(lab: Installation, reports: list[Report]) -> Check:
    """The median checkpoint: what went up beside what the turns before it had changed."""
    found = [item for item in lab.checkpoints(RESEARCHER) if committed_at(item) and "size" in item["status"]]
    sizes, pairs = (lab.settings.state_mib, lab.settings.row_stride), []
    for before, after in itertools.pairwise(found):
        since, until = committed_at(before), committed_at(after)
        changed = proof.bytes_changed(reports, since, until, mebibytes=sizes[0], stride=sizes[1])
        if changed:
            uploaded = int(after["status"]["size"]["uploaded"])
            pairs.append((uploaded / changed, uploaded, changed))
    ratio, uploaded, changed = sorted(pairs)[len(pairs) // 2] if pairs else (float("inf"), 0, 0)
    name = "bytes uploaded against bytes changed, median"
    return Check(name, f"{uploaded} / {changed} = {ratio:.2f}", "≤ 2", ratio <= 2)


def _sidecar_memory(lab: Installation) -> list[Check]:
    """Resident memory of the researcher's and of the coder's sidecar: now, between checkpoints, and at its most."""
    found = []
    for app, (what, goal) in ((CODER, ("VmRSS", 64)), (RESEARCHER, ("VmHWM", 192))):
        pod = lab.wait_running(app)["metadata"]["name"]
        status = lab.agents("exec", pod, "-c", "savepoint-sidecar", "--", "cat", "/proc/1/status")
        mebibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) / 1024
        name = f"memory of the {app}'s sidecar, {'at rest' if what == 'VmRSS' else 'at its most'}, MiB"
        found.append(Check(name, f"{mebibytes:.0f}", f"≤ {goal}", mebibytes <= goal, figure=True))
    return found


def _named(facts: Observations) -> bool:
    return bool(facts.corrupted_key) and facts.corrupted_key.rsplit("/", 1)[-1] in facts.corrupted_refusal


def _paused(item: dict[str, Any]) -> bool:
    return item["status"].get("timing", {}).get("pauseMilliseconds") is not None


def _twin_started_over(reports: list[Report]) -> Check:
    turns = [int(report["turn"]) for report in proof.starts(reports)[1:]]
    return Check(
        "drains: the twin began again at turn", str(turns), "all 0, at least one", bool(turns) and not any(turns)
    )
