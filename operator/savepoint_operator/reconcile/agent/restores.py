"""AgentRestore objects of mode Resume: one for every start of a pod, so that the list tells the whole story.

They report; what is granted and restored is decided by ``lineage``. Ten are kept for each agent, and ten of those that
users made.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from savepoint.contract.control_protocol import Outcome
from savepoint.contract.names import LABEL_AGENT

from savepoint_operator.cluster.errors import Conflict, Missing
from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import DEPLOYMENTS, PODS, RESTORES
from savepoint_operator.model.objects import CheckpointObject, ObjectKey, RestoreObject
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent_record import AgentRecord, RestoreRecord
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.rules import shared_volumes
from savepoint_operator.rules.status import restore_status
from savepoint_operator.rules.status.conditions import Condition, changed, stamp
from savepoint_operator.rules.status.texts import duration_text, with_next_step

KEPT: Final = 10
GONE_SECONDS: Final = 15.0
WAITS_TOLD: Final = 8
"""Events that tell of one start what it waits for, on each object; more change its status only. A pod says some."""
_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"


class Restores:
    """The step of an agent's look that is about starts of its pods."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        objects: CheckpointObjects,
        events: Events,
        now: Callable[[], datetime],
    ) -> None:
        self._cluster, self._cache, self._objects, self._events, self._now = cluster, cache, objects, events, now

    async def write_notes(self, agent_record: AgentRecord) -> None:
        """Bring the objects in line with what was told."""
        for uid, note in list(agent_record.restores.items()):
            item = await self._ensure(agent_record.agent, note)
            told = note.outcome  # more may come while this is being written
            patch, condition = self._told(agent_record, note)
            news = item.reason != patch["reason"] or (note.outcome is None and _message(item) != condition.message)
            if await self._write(item, patch, condition) and news:
                await self._say(agent_record, note, item)
            if told is not None and agent_record.restores.get(uid) is note:
                del agent_record.restores[uid]

    async def end_lost(self, agent_record: AgentRecord) -> float | None:
        """A start whose pod is gone has ended, though nobody could say how."""
        again: float | None = None
        for note in agent_record.restores.values():
            if note.outcome is None and self._gone(agent_record.agent, note.who.pod.uid):
                if (self._now() - note.started).total_seconds() < GONE_SECONDS:
                    again = GONE_SECONDS  # a watch may be behind the pod's own connection
                    continue
                note.outcome = Outcome("PodGone", f"Pod {note.who.pod.name} ended before it had restored.")
                note.ended = self._now()
        for item in self._cache.restores.of(agent_record.agent):
            known = any(note.who.pod.uid == item.pod_uid for note in agent_record.restores.values())
            if item.mode != "Resume" or item.finished or known or not self._gone(agent_record.agent, item.pod_uid):
                continue
            if (self._now() - item.meta.created).total_seconds() < GONE_SECONDS:
                again = GONE_SECONDS
                continue
            patch, condition = restore_status.lost(item.status, self._now())
            if await self._write(item, patch, condition):
                await self._events.warning(EventTarget.of(RESTORES, item.meta), condition.reason, condition.message)
        return again

    def _gone(self, agent: AgentRef, uid: str) -> bool:
        pod = self._cache.pod_by_uid(agent, uid)
        return pod is None or pod.phase in ("Succeeded", "Failed")

    async def expire(self, agent_record: AgentRecord) -> None:
        """Delete the oldest ones beyond the limit: of starts, and of rollbacks and resets that no manifest names.

        What is applied by its name would come again, and roll the agent back once more.
        """
        every = self._cache.restores.of(agent_record.agent)
        starts = [each for each in every if each.mode == "Resume"]
        asked = [each for each in every if each.mode != "Resume" and each.meta.generated]
        for item in (*_beyond(starts), *_beyond(asked)):
            await self._cluster.delete(RESTORES, item.meta.namespace, item.meta.name, item.meta.uid)
            self._cache.restores.remove(
                {"metadata": {"namespace": item.meta.namespace, "name": item.meta.name, "uid": item.meta.uid}}
            )

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _write(self, item: RestoreObject, patch: restore_status.Patch, condition: Condition) -> bool:
        """Whether there was anything to write."""
        status = restore_status.status(item.status, patch, condition, item.meta.generation, self._now())
        difference = changed(item.status, status)
        if difference:
            try:
                raw = await self._cluster.patch(
                    RESTORES, item.meta.namespace, item.meta.name, {"status": difference}, subresource="status"
                )
            except Missing:
                return False
            self._cache.restores.put(raw)
        return bool(difference)

    def _told(self, agent_record: AgentRecord, note: RestoreRecord) -> tuple[restore_status.Patch, Condition]:
        resolved = self._resolved(agent_record, note)
        if note.outcome is not None:
            outcome = self._with_step(note)
            ended = note.ended or self._now()
            return _discarded(
                note, restore_status.ended(note.who, note.epoch, resolved, outcome, started=note.started, now=ended)
            )
        if note.epoch:
            told = restore_status.granted(
                note.who, note.epoch, resolved, note.progress, note.started, wait=note.waits_for
            )
            return _discarded(note, told)
        assert note.wait is not None
        return restore_status.waiting(note.who, note.wait, note.started)

    def _with_step(self, note: RestoreRecord) -> Outcome:
        outcome = note.outcome
        assert outcome is not None
        if outcome.outcome in restore_status.GOOD:
            return outcome
        message = with_next_step(outcome.outcome, outcome.message, note.who.policy_name)
        return replace(outcome, message=message)

    def _resolved(self, agent_record: AgentRecord, note: RestoreRecord) -> restore_status.Patch | None:
        if note.restores is None or note.head is None:
            return None
        found: restore_status.Patch = {"checkpointName": note.restores}
        if note.head.record.manifest is not None:
            found["manifestDigest"] = note.head.record.manifest.name
        checkpoint = self._checkpoint(agent_record, note)
        if checkpoint is not None:
            found["checkpointName"] = checkpoint.meta.name
        if checkpoint is not None and checkpoint.sequence:
            found["sequence"] = checkpoint.sequence
            time = (checkpoint.status.get("timing") or {}).get("completion")
            if time:
                found["time"] = time
        return found

    def _checkpoint(self, agent_record: AgentRecord, note: RestoreRecord) -> CheckpointObject | None:
        """Whose state is restored; by its manifest, since a name may have been given while no object could be made."""
        manifest = note.head.record.manifest if note.head is not None else None
        return self._objects.of_manifest(agent_record.agent, manifest.name) if manifest is not None else None

    async def _ensure(self, agent: AgentRef, note: RestoreRecord) -> RestoreObject:
        """The object of this start: found by the pod's uid and epoch, or one that still waits for its epoch."""
        for item in self._cache.restores.of(agent):
            ours = item.mode == "Resume" and item.pod_uid == note.who.pod.uid
            if ours and (item.epoch == note.epoch or (item.epoch == 0 and not item.finished)):
                return item
        name = f"{agent.name}-{_suffix(note.who.pod.uid, note.epoch)}"
        body = {
            "metadata": {"namespace": agent.namespace, "name": name, "labels": {LABEL_AGENT: agent.name}},
            "spec": {"mode": "Resume", "source": {"agent": agent.name}},
        }
        try:
            raw = await self._cluster.create(RESTORES, body)
        except Conflict:
            raw = await self._cluster.get(RESTORES, agent.namespace, name) or {}
        self._cache.restores.put(raw)
        found = self._cache.restores.get(ObjectKey(agent.namespace, name))
        assert found is not None
        return found

    async def _say(self, agent_record: AgentRecord, note: RestoreRecord, item: RestoreObject) -> None:
        """On the pod, where its user looks, and on the object itself, which outlives the pod."""
        about = EventTarget(PODS, agent_record.agent.namespace, note.who.pod.name, note.who.pod.uid)
        both = (about, EventTarget.of(RESTORES, item.meta))
        outcome = note.outcome
        if outcome is None:
            wait = note.waits_for
            if wait is not None and (wait.reason, wait.message) not in note.said and len(note.said) < WAITS_TOLD:
                note.said.add((wait.reason, wait.message))
                for each in both:
                    await self._events.warning(each, wait.reason, wait.message)
                await self._say_on_deployment(agent_record, note)
            return
        if outcome.outcome not in restore_status.GOOD:
            for each in both:
                await self._events.warning(each, outcome.outcome, self._with_step(note).message)
            return
        for each in both:
            await self._events.normal(each, outcome.outcome, self._sentence(agent_record, note))
        if outcome.config_changed and note.restores is not None:
            name = self._restored_name(agent_record, note)
            await self._events.warning(about, "ConfigurationChanged", restore_status.other_configuration(name))
        if note.who.shared:
            words = shared_volumes.left_out(note.who.shared, note.who.policy_name)
            await self._events.normal(about, "SharedVolumeLeftOut", words)

    def _restored_name(self, agent_record: AgentRecord, note: RestoreRecord) -> str:
        checkpoint = self._checkpoint(agent_record, note)
        return checkpoint.meta.name if checkpoint is not None else note.restores or ""

    def _sentence(self, agent_record: AgentRecord, note: RestoreRecord) -> str:
        outcome = note.outcome
        assert outcome is not None
        took = duration_text(outcome.milliseconds)
        if outcome.outcome == "Fresh":
            return f"Agent {agent_record.agent.name} starts fresh in epoch {note.epoch}: there is no checkpoint."
        if outcome.outcome == "KeptLocal":
            return (
                f"Agent {agent_record.agent.name} goes on with what its volumes hold: it is as new as {note.restores}."
            )
        checkpoint = self._checkpoint(agent_record, note)
        if checkpoint is not None:
            step = str((checkpoint.status.get("execution") or {}).get("step") or "")
        else:
            known = agent_record.latest is not None and agent_record.latest.record.name == note.restores
            step = agent_record.latest_step if known else ""
        at = f" at step {step}" if step else ""
        return f"Agent {agent_record.agent.name} resumed{at} from {self._restored_name(agent_record, note)}, {took}."

    async def _say_on_deployment(self, agent_record: AgentRecord, note: RestoreRecord) -> None:
        """A rolling Deployment waits for ever: its user watches the Deployment, not the pod."""
        if note.wait is None or note.wait.reason != "PredecessorRunning":
            return
        pod = self._cache.pod_by_uid(agent_record.agent, note.who.pod.uid)
        if pod is None or pod.owner is None or pod.owner.kind != "ReplicaSet":
            return
        raw = await self._cluster.get(DEPLOYMENTS, agent_record.agent.namespace, pod.owner.name.rpartition("-")[0])
        if raw is None or ((raw.get("spec") or {}).get("strategy") or {}).get("type") == "Recreate":
            return
        about = EventTarget(DEPLOYMENTS, agent_record.agent.namespace, raw["metadata"]["name"], raw["metadata"]["uid"])
        await self._events.warning(
            about,
            "PredecessorRunning",
            "The rollout waits: the new pod may not start before the old one has ended, and RollingUpdate ends the "
            "old one only after the new one has started. Set `strategy: {type: Recreate, rollingUpdate: null}`.",
        )


def _beyond(items: list[RestoreObject]) -> list[RestoreObject]:
    """Of the ended ones the oldest, so that as many stay as are kept."""
    return [each for each in items if each.finished][: max(len(items) - KEPT, 0)]


def _message(item: RestoreObject) -> str:
    """What its condition says."""
    return next((str(each.get("message")) for each in item.status.get("conditions") or ()), "")


def _discarded(
    note: RestoreRecord, told: tuple[restore_status.Patch, Condition]
) -> tuple[restore_status.Patch, Condition]:
    """What the predecessor had done after the checkpoint, where that is known."""
    patch, condition = told
    if note.discarded_seconds is not None:
        patch.setdefault("summary", {})["discarded"] = duration_text(note.discarded_seconds * 1000)
    if note.discarded_since is not None and note.discarded_seconds:
        patch["discarded"] = {"since": stamp(note.discarded_since)}
    return patch, condition


def _suffix(pod_uid: str, epoch: int) -> str:
    """Five letters that are always the same for one start."""
    number = int.from_bytes(hashlib.sha256(f"{pod_uid}:{epoch}".encode()).digest()[:8], "big")
    letters = ""
    for _ in range(5):
        number, digit = divmod(number, len(_LETTERS))
        letters += _LETTERS[digit]
    return letters
