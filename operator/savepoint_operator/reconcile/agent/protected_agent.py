"""The ProtectedAgent: one agent's line of life, and the pin of its chain. Written last, after the other objects."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from savepoint.contract.names import LABEL_AGENT

from savepoint_operator.cluster.errors import Conflict, Missing
from savepoint_operator.cluster.events import Events, EventTarget
from savepoint_operator.cluster.kinds import AGENTS
from savepoint_operator.model.objects import AgentObject, Interval, ObjectKey, Pod, Policy
from savepoint_operator.reconcile.agent_record import AgentRecord
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.rules.protection import Facts, Protection, judge
from savepoint_operator.rules.status.conditions import Condition, changed, merged, parsed_time, stamp
from savepoint_operator.rules.status.texts import size_text


class ProtectedAgents:
    """The last step of an agent's look."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        objects: CheckpointObjects,
        events: Events,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        leader_since: Callable[[], float],
    ) -> None:
        self._cluster, self._cache, self._objects, self._events = cluster, cache, objects, events
        self._now, self._monotonic, self._leader_since = now, monotonic, leader_since

    async def ensure(self, agent_record: AgentRecord) -> AgentObject | None:
        """The object; made when a pod or a record speaks of the agent and there is none."""
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        if item is not None:
            return item
        if agent_record.head is None and not agent_record.restores and not self._cache.pods.of(agent_record.agent):
            return None
        namespace, name = agent_record.agent
        body = {"metadata": {"namespace": namespace, "name": name, "labels": {LABEL_AGENT: name}}}
        try:
            raw = await self._cluster.create(AGENTS, body)
        except Conflict:
            raw = await self._cluster.get(AGENTS, namespace, name) or {}
        if raw:
            self._cache.agents.put(raw)
        return self._cache.agents.get(ObjectKey(*agent_record.agent))

    async def write(self, agent_record: AgentRecord, policy: Policy | None, store_name: str) -> None:
        """Bring the status in line with what is known."""
        item = await self.ensure(agent_record)
        if item is None or item.meta.deleting:
            return
        protection = self._judge(agent_record, item, policy)
        patch = self._status(agent_record, item, policy, store_name, protection)
        difference = changed(item.status, patch)
        if not difference:
            return
        try:
            raw = await self._cluster.patch(
                AGENTS, item.meta.namespace, item.meta.name, {"status": difference}, subresource="status"
            )
        except Missing:
            return
        self._cache.agents.put(raw)
        if item.reason in ("Protected", "Completed") and protection.reason in ("AtRisk", "Unprotected"):
            await self._events.warning(EventTarget.of(AGENTS, item.meta), protection.reason, protection.message)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _judge(self, agent_record: AgentRecord, item: AgentObject, policy: Policy | None) -> Protection:
        pods = tuple(self._cache.pods.of(agent_record.agent))
        node = next((pod.node for pod in reversed(pods) if pod.live and pod.node), "")
        known = self._cache.nodes.get(ObjectKey("", node)) if node else None
        interval = policy.interval if policy is not None else Interval()
        failure = (agent_record.failure.reason, agent_record.failure.message) if agent_record.failure else None
        return judge(
            Facts(
                pods=pods,
                connected=agent_record.session is not None,
                restoring=self._restoring(agent_record),
                refused=self._refused(agent_record, pods),
                completed=agent_record.completed,
                latest_name=self._objects.latest_name(agent_record),
                recovery_point=agent_record.recovery_point or parsed_time(item.status.get("recoveryPointTime")),
                failure=failure,
                lost_node=node if known is not None and known.lost else "",
                interval=None if policy is not None and policy.suspend else interval,
                silent_seconds=self._silent(agent_record, pods),
                now=self._now(),
            )
        )

    def _silent(self, agent_record: AgentRecord, pods: tuple[Pod, ...]) -> float:
        """A new leader, a new pod and a sidecar that has just gone are all given time."""
        youngest = max((pod.meta.created for pod in pods if pod.live), default=self._now())
        spans = [self._monotonic() - self._leader_since(), (self._now() - youngest).total_seconds()]
        if agent_record.disconnected_at is not None:
            spans.append(self._monotonic() - agent_record.disconnected_at)
        return max(min(spans), 0.0)

    def _restoring(self, agent_record: AgentRecord) -> str:
        note = next((each for each in agent_record.restores.values() if each.outcome is None), None)
        if note is None:
            return ""
        wait = note.waits_for
        if wait is not None:
            return f"Pod {note.who.pod.name} waits: {wait.message}"
        return f"Pod {note.who.pod.name} restores {note.restores or 'nothing: it starts fresh'}."

    def _refused(self, agent_record: AgentRecord, pods: tuple[Pod, ...]) -> str:
        """What the newest AgentRestore of the newest pod says, if that start has failed."""
        pod = next((each for each in reversed(pods) if each.live), None)
        if pod is None:
            return ""
        every = [each for each in self._cache.restores.of(agent_record.agent) if each.pod_uid == pod.meta.uid]
        last = max(every, key=lambda each: (each.meta.created, each.epoch), default=None)
        if last is None or not last.finished or last.succeeded:
            return ""
        told: dict[str, Any] = next(
            (each for each in last.status.get("conditions") or () if each.get("type") == "Succeeded"), {}
        )
        return f"Pod {pod.meta.name} cannot start: {last.reason}: {told.get('message', '')}"

    def _status(
        self,
        agent_record: AgentRecord,
        item: AgentObject,
        policy: Policy | None,
        store_name: str,
        protection: Protection,
    ) -> dict[str, Any]:
        condition = Condition.of("Protected", protection.holds, protection.reason, protection.message)
        generation = item.meta.generation
        patch: dict[str, Any] = {
            "observedGeneration": generation,
            "reason": protection.reason,
            "policyName": policy.meta.name if policy is not None else None,
            "conditions": merged(item.status.get("conditions") or (), (condition,), generation, self._now()),
        }
        if store_name:
            patch["storeName"] = store_name
        if agent_record.who is not None:
            pod = agent_record.who.pod
            patch["podRef"] = {"name": pod.name, "uid": pod.uid, "released": agent_record.released_pod == pod.uid}
            patch["nodeName"] = agent_record.who.node
        if agent_record.session is not None:
            patch["sidecarVersion"] = agent_record.session.sidecar_version
        self._tell_chain(agent_record, item, patch)
        if agent_record.recovery_point is not None:
            patch["recoveryPointTime"] = stamp(agent_record.recovery_point)
        if agent_record.failure is not None:
            failure = agent_record.failure
            patch["lastFailure"] = {
                "reason": failure.reason,
                "time": stamp(failure.time),
                "message": failure.message[:2048],
            }
        if agent_record.stored_bytes is not None:
            patch["storedSize"] = agent_record.stored_bytes
            patch["summary"] = {"size": size_text(agent_record.stored_bytes)}
        if agent_record.uncertain is not None:
            patch["uncertainOperations"] = list(agent_record.uncertain) or None
        return patch

    def _tell_chain(self, agent_record: AgentRecord, item: AgentObject, patch: dict[str, Any]) -> None:
        if agent_record.head is None or (item.pin is not None and agent_record.head.record.sequence < item.pin[0]):
            return
        head = agent_record.head.record
        patch |= {
            "epoch": head.epoch,
            "run": head.run,
            "head": {"sequence": head.sequence, "recordDigest": agent_record.head.digest},
        }
        latest = dict(self._objects.latest(agent_record))
        patch["latest"] = latest or None
