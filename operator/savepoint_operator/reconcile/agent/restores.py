"""The steps for AgentRestores of mode Resume: one for each start of a pod, so that the list shows every start.

They only report; what is granted and restored is decided by ``lineage``. Ten are kept for each agent, and ten of those
that users created.
"""

import hashlib
from dataclasses import replace
from typing import Final

from savepoint.contract.control_protocol import Outcome
from savepoint.contract.names import LABEL_AGENT
from savepoint.contract.vocabulary import Reason, RestoreMode, RestoreOutcome

from savepoint_operator.cluster.errors import Conflict
from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import DEPLOYMENTS, PODS, RESTORES
from savepoint_operator.model.objects import CheckpointObject, ObjectKey, RestoreObject
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent_record import AgentRecord, RestoreRecord
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.rules import shared_volumes
from savepoint_operator.rules.status import restore_status
from savepoint_operator.rules.status.conditions import Condition, stamp
from savepoint_operator.rules.status.texts import duration_text, with_next_step

RESTORES_KEPT: Final = 10
POD_GONE_SECONDS: Final = 15.0
"""Age of a start at which a missing pod ends it: the watch may lag behind the pod's own connection."""
MAX_WAIT_EVENTS: Final = 8
"""Limit on Events about what one start waits for; further waits, which a pod may report, only change the status."""
_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"


class Restores:
    """Steps of one agent's reconcile."""

    def __init__(self, dependencies: StepDependencies, objects: CheckpointObjects) -> None:
        self._cluster, self._cache, self._events = dependencies.cluster, dependencies.cache, dependencies.events
        self._status_writer, self._now = dependencies.status_writer, dependencies.clocks.now
        self._objects = objects

    async def write_status(self, agent_record: AgentRecord) -> None:
        """Write every start's state to its AgentRestore, and report changes in Events."""
        for uid, restore in list(agent_record.restores.items()):
            item = await self._ensure(agent_record.agent, restore)
            written = restore.outcome  # the outcome may change while the API server answers
            patch, condition = self._status(agent_record, restore)
            news = item.reason != patch["reason"] or (restore.outcome is None and _message(item) != condition.message)
            exists = await self._status_writer.write(RESTORES, item, patch, condition) is not None
            if exists and news:
                await self._report(agent_record, restore, item)
            if written is not None and agent_record.restores.get(uid) is restore:
                del agent_record.restores[uid]

    async def end_lost(self, agent_record: AgentRecord) -> float | None:
        """End starts whose pod no longer runs and reported no outcome; return the seconds until the next check."""
        delay: float | None = None
        for restore in agent_record.restores.values():
            pod = restore.incarnation.pod
            if restore.outcome is None and self._pod_gone(agent_record.agent, pod.uid):
                if (self._now() - restore.started).total_seconds() < POD_GONE_SECONDS:
                    delay = POD_GONE_SECONDS
                    continue
                restore.outcome = Outcome(Reason.POD_GONE, f"Pod {pod.name} ended before its restore was complete.")
                restore.ended = self._now()
        for item in self._cache.restores.of(agent_record.agent):
            known = any(restore.incarnation.pod.uid == item.pod_uid for restore in agent_record.restores.values())
            if item.mode != RestoreMode.RESUME or item.finished or known:
                continue
            if not self._pod_gone(agent_record.agent, item.pod_uid):
                continue
            if (self._now() - item.meta.created).total_seconds() < POD_GONE_SECONDS:
                delay = POD_GONE_SECONDS
                continue
            patch, condition = restore_status.pod_gone(item.status, self._now())
            if await self._status_writer.write(RESTORES, item, patch, condition) is not None:
                target = EventTarget.of(RESTORES, item.meta)
                await self._events.warning(target, condition.reason, condition.message)
        return delay

    async def expire(self, agent_record: AgentRecord) -> None:
        """Delete the oldest starts, rollbacks and resets beyond the limit.

        Rollbacks and resets with a fixed name are kept: a tool that applies manifests would create a deleted one again,
        and the agent would be rolled back once more.
        """
        items = self._cache.restores.of(agent_record.agent)
        starts = [each for each in items if each.mode == RestoreMode.RESUME]
        requested = [each for each in items if each.mode != RestoreMode.RESUME and each.meta.generated]
        for item in (*_beyond_limit(starts), *_beyond_limit(requested)):
            meta = item.meta
            await self._cluster.delete(RESTORES, meta.namespace, meta.name, meta.uid)
            identity = {"namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
            self._cache.restores.remove({"metadata": identity})

    # -- status ---------------------------------------------------------------------------------------------------

    def _pod_gone(self, agent: AgentRef, uid: str) -> bool:
        pod = self._cache.pod_by_uid(agent, uid)
        return pod is None or pod.phase in ("Succeeded", "Failed")

    def _status(self, agent_record: AgentRecord, restore: RestoreRecord) -> tuple[restore_status.Patch, Condition]:
        incarnation, started = restore.incarnation, restore.started
        resolved = self._resolved(agent_record, restore)
        if restore.outcome is not None:
            outcome, ended = _with_remedy(restore), restore.ended or self._now()
            return _with_discarded(
                restore,
                restore_status.ended(incarnation, restore.epoch, resolved, outcome, started=started, now=ended),
            )
        if restore.epoch:
            granted = restore_status.granted(
                incarnation, restore.epoch, resolved, restore.progress, started, wait=restore.waits_for
            )
            return _with_discarded(restore, granted)
        assert restore.wait is not None
        return restore_status.waiting(incarnation, restore.wait, started)

    def _resolved(self, agent_record: AgentRecord, restore: RestoreRecord) -> restore_status.Patch | None:
        if restore.checkpoint_name is None or restore.head is None:
            return None
        resolved: restore_status.Patch = {"checkpointName": restore.checkpoint_name}
        if restore.head.record.manifest is not None:
            resolved["manifestDigest"] = restore.head.record.manifest.name
        checkpoint = self._checkpoint(agent_record, restore)
        if checkpoint is not None:
            resolved["checkpointName"] = checkpoint.meta.name
        if checkpoint is not None and checkpoint.sequence:
            resolved["sequence"] = checkpoint.sequence
            time = (checkpoint.status.get("timing") or {}).get("completion")
            if time:
                resolved["time"] = time
        return resolved

    def _checkpoint(self, agent_record: AgentRecord, restore: RestoreRecord) -> CheckpointObject | None:
        """Return the AgentCheckpoint that is restored.

        It is looked up by manifest: its name may differ from the record's if no object could be created at the commit.
        """
        manifest = restore.head.record.manifest if restore.head is not None else None
        return self._objects.of_manifest(agent_record.agent, manifest.name) if manifest is not None else None

    async def _ensure(self, agent: AgentRef, restore: RestoreRecord) -> RestoreObject:
        """Return the start's object: the one with its pod and epoch, or one that still waits for its epoch."""
        uid = restore.incarnation.pod.uid
        for item in self._cache.restores.of(agent):
            matches = item.mode == RestoreMode.RESUME and item.pod_uid == uid
            if matches and (item.epoch == restore.epoch or (item.epoch == 0 and not item.finished)):
                return item
        name = f"{agent.name}-{_suffix(uid, restore.epoch)}"
        body = {
            "metadata": {"namespace": agent.namespace, "name": name, "labels": {LABEL_AGENT: agent.name}},
            "spec": {"mode": RestoreMode.RESUME, "source": {"agent": agent.name}},
        }
        try:
            raw = await self._cluster.create(RESTORES, body)
        except Conflict:
            raw = await self._cluster.get(RESTORES, agent.namespace, name) or {}
        self._cache.restores.put(raw)
        created = self._cache.restores.get(ObjectKey(agent.namespace, name))
        assert created is not None
        return created

    # -- Events ---------------------------------------------------------------------------------------------------

    async def _report(self, agent_record: AgentRecord, restore: RestoreRecord, item: RestoreObject) -> None:
        """Report on the pod, where its user looks, and on the AgentRestore, which outlives the pod."""
        incarnation, outcome = restore.incarnation, restore.outcome
        pod = EventTarget(PODS, agent_record.agent.namespace, incarnation.pod.name, incarnation.pod.uid)
        both = (pod, EventTarget.of(RESTORES, item.meta))
        if outcome is None:
            await self._report_wait(agent_record, restore, both)
            return
        if outcome.outcome not in restore_status.SUCCESSFUL_OUTCOMES:
            for target in both:
                await self._events.warning(target, outcome.outcome, _with_remedy(restore).message)
            return
        for target in both:
            await self._events.normal(target, outcome.outcome, self._sentence(agent_record, restore, outcome))
        if outcome.replaced:
            for target in both:
                await self._events.warning(target, Reason.FILES_REPLACED, restore_status.replaced_message(outcome))
        if outcome.config_changed and restore.checkpoint_name is not None:
            message = restore_status.configuration_changed_message(self._restored_name(agent_record, restore))
            await self._events.warning(pod, Reason.CONFIGURATION_CHANGED, message)
        if incarnation.shared:
            message = shared_volumes.left_out_message(incarnation.shared, incarnation.policy_name)
            await self._events.normal(pod, Reason.SHARED_VOLUME_LEFT_OUT, message)

    async def _report_wait(
        self, agent_record: AgentRecord, restore: RestoreRecord, targets: tuple[EventTarget, ...]
    ) -> None:
        wait, reported = restore.waits_for, restore.reported_waits
        if wait is None or (wait.reason, wait.message) in reported or len(reported) >= MAX_WAIT_EVENTS:
            return
        reported.add((wait.reason, wait.message))
        for target in targets:
            await self._events.warning(target, wait.reason, wait.message)
        await self._report_on_deployment(agent_record, restore)

    async def _report_on_deployment(self, agent_record: AgentRecord, restore: RestoreRecord) -> None:
        """Report a blocked rollout on the Deployment: it would wait forever, and its user does not look at the pod."""
        if restore.wait is None or restore.wait.reason != Reason.PREDECESSOR_RUNNING:
            return
        namespace = agent_record.agent.namespace
        pod = self._cache.pod_by_uid(agent_record.agent, restore.incarnation.pod.uid)
        if pod is None or pod.owner is None or pod.owner.kind != "ReplicaSet":
            return
        raw = await self._cluster.get(DEPLOYMENTS, namespace, pod.owner.name.rpartition("-")[0])
        if raw is None or ((raw.get("spec") or {}).get("strategy") or {}).get("type") == "Recreate":
            return
        await self._events.warning(
            EventTarget(DEPLOYMENTS, namespace, raw["metadata"]["name"], raw["metadata"]["uid"]),
            Reason.PREDECESSOR_RUNNING,
            "The rollout is blocked: the new pod must not start before the old one has ended, but RollingUpdate ends "
            "the old pod only after the new one has started. Set `strategy: {type: Recreate, rollingUpdate: null}`.",
        )

    def _restored_name(self, agent_record: AgentRecord, restore: RestoreRecord) -> str:
        checkpoint = self._checkpoint(agent_record, restore)
        return checkpoint.meta.name if checkpoint is not None else restore.checkpoint_name or ""

    def _sentence(self, agent_record: AgentRecord, restore: RestoreRecord, outcome: Outcome) -> str:
        agent = agent_record.agent.name
        if outcome.outcome == RestoreOutcome.FRESH:
            return f"Agent {agent} starts fresh in epoch {restore.epoch}: there is no checkpoint."
        if outcome.outcome == RestoreOutcome.KEPT_LOCAL:
            return (
                f"Agent {agent} kept the state on its volumes, which is at least as new as {restore.checkpoint_name}."
            )
        checkpoint = self._checkpoint(agent_record, restore)
        if checkpoint is not None:
            step = str((checkpoint.status.get("execution") or {}).get("step") or "")
        else:
            latest = agent_record.latest
            step = (
                agent_record.latest_step if latest is not None and latest.record.name == restore.checkpoint_name else ""
            )
        at_step = f" at step {step}" if step else ""
        name, took = self._restored_name(agent_record, restore), duration_text(outcome.milliseconds)
        return f"Agent {agent} resumed{at_step} from {name}, {took}."


def _with_remedy(restore: RestoreRecord) -> Outcome:
    """Return the outcome; if it is a failure, its message ends with what to do."""
    outcome = restore.outcome
    assert outcome is not None
    if outcome.outcome in restore_status.SUCCESSFUL_OUTCOMES:
        return outcome
    message = with_next_step(outcome.outcome, outcome.message, restore.incarnation.policy_name)
    return replace(outcome, message=message)


def _beyond_limit(items: list[RestoreObject]) -> list[RestoreObject]:
    """Return the oldest finished objects, as many as there are objects too many."""
    return [each for each in items if each.finished][: max(len(items) - RESTORES_KEPT, 0)]


def _message(item: RestoreObject) -> str:
    """Return the message of the object's condition."""
    return next((str(each.get("message")) for each in item.status.get("conditions") or ()), "")


def _with_discarded(
    restore: RestoreRecord, status: tuple[restore_status.Patch, Condition]
) -> tuple[restore_status.Patch, Condition]:
    """Add the predecessor's work after the checkpoint, which is lost, if it is known."""
    patch, condition = status
    if restore.discarded_seconds is not None:
        patch.setdefault("summary", {})["discarded"] = duration_text(restore.discarded_seconds * 1000)
    if restore.discarded_since is not None and restore.discarded_seconds:
        patch["discarded"] = {"since": stamp(restore.discarded_since)}
    return patch, condition


def _suffix(pod_uid: str, epoch: int) -> str:
    """Return five letters that are always the same for one start."""
    number = int.from_bytes(hashlib.sha256(f"{pod_uid}:{epoch}".encode()).digest()[:8], "big")
    letters = ""
    for _ in range(5):
        number, digit = divmod(number, len(_LETTERS))
        letters += _LETTERS[digit]
    return letters
