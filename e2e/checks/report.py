"""Judgements on the scenarios of the main job, from their observations and the fake services' records.

Reads only; ``e2e.checks.checks`` does the counting.
"""

import itertools
from dataclasses import dataclass

from e2e.checks import checks
from e2e.checks.checks import Check, Reference, Report
from e2e.harness.installation import Installation
from e2e.harness.laptop import Laptop
from e2e.scenarios.main_job import (
    CODER,
    IN_PROGRESS,
    RESEARCHER,
    TWIN,
    ContainerKill,
    Corruption,
    OperatorKill,
    Reschedule,
    committed_at,
    slowest_move,
)

DRAINS = 2
LAPTOP_KILLS = 2


@dataclass(frozen=True)
class Observations:
    """Everything that the scenarios on the cluster observed."""

    kill: ContainerKill
    moves: list[Reschedule]
    operator: OperatorKill
    corruption: Corruption


def laptop_checks(laptop: Laptop) -> list[Check]:
    """Judge the scenario without a cluster: two kills, and only calls in flight were repeated."""
    reports, calls = laptop.services.reports(RESEARCHER), laptop.services.calls(RESEARCHER)
    turns = checks.last_turn(reports)
    reference = Reference.run(turns + 1, mebibytes=laptop.mebibytes, stride=25, documents=2000)
    repeated = checks.calls_repeated(calls)
    starts = checks.starts(reports)
    found = [
        checks.state_agrees(reports, reference),
        Check("restarted after each kill -9", f"{len(starts) - 1}", str(LAPTOP_KILLS), len(starts) == 1 + LAPTOP_KILLS),
        Check(
            "completed model calls repeated",
            str(repeated),
            f"at most {LAPTOP_KILLS}, one in flight per kill",
            repeated <= LAPTOP_KILLS,
        ),
        checks.effects_counted(
            reports, laptop.services.effects(RESEARCHER), laptop.services.reports(RESEARCHER), reference
        ),
        checks.effects_uncertain(reports),
    ]
    return [Check(f"laptop: {entry.name}", entry.found, entry.expected, entry.holds) for entry in found]


def cluster_checks(installation: Installation, observed: Observations) -> list[Check]:
    """Judge everything that the scenarios on the cluster must show."""
    settings, services = installation.settings, installation.services
    before, effects = services.reports(RESEARCHER), services.effects(RESEARCHER)
    reports, twin = services.reports(RESEARCHER), services.reports(TWIN)
    reference = Reference.run(
        checks.last_turn(reports) + 1,
        mebibytes=settings.state_mib,
        stride=settings.row_stride,
        documents=settings.documents,
    )
    return [
        checks.state_agrees(reports, reference),
        checks.position_agrees(reports, reference),
        checks.conversation_grows(reports, reference),
        checks.effects_counted(before, effects, reports, reference),
        checks.effects_uncertain(reports),
        work_lost(reports, observed.moves),
        killed_in_place(observed.kill),
        *drains(observed.moves, checks.calls_repeated(services.calls(TWIN))),
        _twin_started_over(twin),
        _release_to_running(observed.moves),
        _pause(installation),
        _uploaded(installation, reports),
        *_sidecar_memory(installation),
        *operator_killed(observed.operator),
        *corrupted(observed.corruption),
        *checks.coder_continues(services.reports(CODER)),
    ]


def killed_in_place(kill: ContainerKill) -> Check:
    """Judge a kill in place: at most the call in flight was repeated."""
    name = "kill -9 in place: calls repeated"
    return Check(name, str(kill.calls_repeated), "≤ 1", kill.calls_repeated <= 1)


def work_lost(reports: list[Report], moves: list[Reschedule]) -> Check:
    """Judge that drains lost no work: no reported turn was executed again (its steps replayed) because of one."""
    by_drains = [move.turns_lost for move in moves]
    found = f"{checks.turns_lost(reports)}, of them by drains {by_drains}"
    name = "work lost: turns repeated, by restart"
    return Check(name, found, "0 by a drain", len(by_drains) == DRAINS and not any(by_drains))


def drains(moves: list[Reschedule], by_twin: int) -> list[Check]:
    """Judge the drains: each node was drained, and the protected agent repeated no call, unlike its twin."""
    nodes = {move.node for move in moves}
    repeated = sum(move.calls_repeated for move in moves)
    return [
        Check("drains: nodes drained", str(len(nodes)), str(DRAINS), len(nodes) == DRAINS),
        Check(
            "drains: trigger of the final checkpoint",
            ", ".join(move.trigger for move in moves),
            "Drain or Shutdown, or nothing done since",
            bool(moves) and all(move.final_checkpoint_is_complete for move in moves),
        ),
        Check("drains: completed model calls repeated", str(repeated), "0", bool(moves) and repeated == 0),
        Check("drains: calls repeated by the unprotected twin", str(by_twin), "more than 0", by_twin > 0),
    ]


def operator_killed(kill: OperatorKill) -> list[Check]:
    """Judge the operator's kill: the next operator made the checkpoint in progress Ready, and a later one, too."""
    in_progress = kill.phase in IN_PROGRESS and 0 < kill.killed_at < kill.committed_at
    phases = f"{kill.phase or 'nothing'} → {kill.outcome or 'nothing'}"
    if kill.phase in IN_PROGRESS and kill.committed_at and not in_progress:
        phases += ", committed before the kill"
    return [
        Check(
            "operator killed: the checkpoint then, and at its end",
            phases,
            "in progress → Ready",
            in_progress and kill.outcome == "Ready",
        ),
        Check(
            "operator killed: sequence before and after",
            f"{kill.sequence_before} → {kill.sequence_after}",
            "increases by both",
            kill.sequence_after >= kill.sequence_before + 2,
        ),
    ]


def corrupted(corruption: Corruption) -> list[Check]:
    """Judge the damaged object: named by the refusal, never started on, and the agent continued after the repair."""
    key = corruption.key
    named = bool(key) and key.rsplit("/", 1)[-1] in corruption.refusal
    started, recovered = corruption.agent_started, corruption.recovered
    return [
        Check("corrupted object: named by the refusal", key[-12:], "yes", named),
        Check("corrupted object: agent started on it", "yes" if started else "no", "no", not started),
        Check("object repaired: the agent continues", "yes" if recovered else "no", "yes", recovered),
    ]


def _release_to_running(moves: list[Reschedule]) -> Check:
    slowest = slowest_move(moves)
    return Check("release to agent running, slowest, seconds", f"{slowest:.1f}", "≤ 10", slowest <= 10, figure=True)


def _pause(installation: Installation) -> Check:
    """Judge the pauses; the longest is often the one during which the operator restarted on the same cores."""
    timings = [item["status"].get("timing", {}) for item in installation.checkpoints(RESEARCHER)]
    pauses = sorted(each["pauseMilliseconds"] for each in timings if each.get("pauseMilliseconds") is not None)
    median, longest = pauses[len(pauses) // 2], pauses[-1]
    name = "pause seen by the agent, median and longest, ms"
    return Check(name, f"{median}, {longest}", "≤ 100", longest <= 100, figure=True)


def _uploaded(installation: Installation, reports: list[Report]) -> Check:
    """Judge the median checkpoint: bytes uploaded against bytes that the turns before it changed."""
    ready = installation.checkpoints(RESEARCHER)
    found = [item for item in ready if committed_at(item) and "size" in item["status"]]
    mebibytes, stride, ratios = installation.settings.state_mib, installation.settings.row_stride, []
    for before, after in itertools.pairwise(found):
        since, until = committed_at(before), committed_at(after)
        changed = checks.bytes_changed(reports, since, until, mebibytes=mebibytes, stride=stride)
        if changed:
            uploaded = int(after["status"]["size"]["uploaded"])
            ratios.append((uploaded / changed, uploaded, changed))
    ratio, uploaded, changed = sorted(ratios)[len(ratios) // 2] if ratios else (float("inf"), 0, 0)
    name = "bytes uploaded against bytes changed, median"
    return Check(name, f"{uploaded} / {changed} = {ratio:.2f}", "≤ 2", ratio <= 2)


def _sidecar_memory(installation: Installation) -> list[Check]:
    """Judge the resident memory of the coder's sidecar at rest, and of the researcher's at its peak."""
    found = []
    for app, (field, when, goal) in ((CODER, ("VmRSS", "at rest", 64)), (RESEARCHER, ("VmHWM", "at its peak", 192))):
        pod = installation.wait_running(app)["metadata"]["name"]
        status = installation.agents("exec", pod, "-c", "savepoint-sidecar", "--", "cat", "/proc/1/status")
        mebibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024
        name = f"memory of the {app}'s sidecar {when}, MiB"
        found.append(Check(name, f"{mebibytes:.0f}", f"≤ {goal}", mebibytes <= goal, figure=True))
    return found


def _twin_started_over(reports: list[Report]) -> Check:
    turns = [int(report["turn"]) for report in checks.starts(reports)[1:]]
    name, expected = "drains: the twin started again at turn", "all 0, at least one"
    return Check(name, str(turns), expected, bool(turns) and not any(turns))
