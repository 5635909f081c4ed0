"""The ProtectedAgent: one agent's line of life, and the pin of its chain. Written last, after the other objects."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from savepoint.contract.names import LABEL_AGENT

from savepoint_operator.cluster.errors import Conflict, Missing
from savepoint_operator.cluster.events import About, Events
from savepoint_operator.cluster.kinds import AGENTS
from savepoint_operator.model.objects import AgentObject, Interval, ObjectKey, Pod, Policy
from savepoint_operator.reconcile.agent_record import Line
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import World
from savepoint_operator.reconcile.cluster_client import Cluster
from savepoint_operator.rules.protection import Facts, Protection, judge
from savepoint_operator.rules.status.conditions import Condition, changed, merged, parsed_time, stamp
from savepoint_operator.rules.status.texts import size_text


class ProtectedAgents:
    """The last step of an agent's look."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        objects: CheckpointObjects,
        events: Events,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        leader_since: Callable[[], float],
    ) -> None:
        self._cluster, self._world, self._objects, self._events = cluster, world, objects, events
        self._now, self._monotonic, self._leader_since = now, monotonic, leader_since

    async def ensure(self, line: Line) -> AgentObject | None:
        """The object; made when a pod or a record speaks of the agent and there is none."""
        item = self._world.agents.get(ObjectKey(*line.agent))
        if item is not None:
            return item
        if line.head is None and not line.restores and not self._world.pods.of(line.agent):
            return None
        namespace, name = line.agent
        body = {"metadata": {"namespace": namespace, "name": name, "labels": {LABEL_AGENT: name}}}
        try:
            raw = await self._cluster.create(AGENTS, body)
        except Conflict:
            raw = await self._cluster.get(AGENTS, namespace, name) or {}
        if raw:
            self._world.agents.put(raw)
        return self._world.agents.get(ObjectKey(*line.agent))

    async def write(self, line: Line, policy: Policy | None, store_name: str) -> None:
        """Bring the status in line with what is known."""
        item = await self.ensure(line)
        if item is None or item.meta.deleting:
            return
        protection = self._judge(line, item, policy)
        patch = self._status(line, item, policy, store_name, protection)
        difference = changed(item.status, patch)
        if not difference:
            return
        try:
            raw = await self._cluster.patch(
                AGENTS, item.meta.namespace, item.meta.name, {"status": difference}, subresource="status"
            )
        except Missing:
            return
        self._world.agents.put(raw)
        if item.reason in ("Protected", "Completed") and protection.reason in ("AtRisk", "Unprotected"):
            await self._events.warning(About.of(AGENTS, item.meta), protection.reason, protection.message)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _judge(self, line: Line, item: AgentObject, policy: Policy | None) -> Protection:
        pods = tuple(self._world.pods.of(line.agent))
        node = next((pod.node for pod in reversed(pods) if pod.live and pod.node), "")
        known = self._world.nodes.get(ObjectKey("", node)) if node else None
        interval = policy.interval if policy is not None else Interval()
        failure = (line.failure.reason, line.failure.message) if line.failure else None
        return judge(
            Facts(
                pods=pods,
                connected=line.session is not None,
                restoring=self._restoring(line),
                refused=self._refused(line, pods),
                completed=line.completed,
                latest_name=self._objects.latest_name(line),
                recovery_point=line.recovery_point or parsed_time(item.status.get("recoveryPointTime")),
                failure=failure,
                lost_node=node if known is not None and known.lost else "",
                interval=None if policy is not None and policy.suspend else interval,
                silent_seconds=self._silent(line, pods),
                now=self._now(),
            )
        )

    def _silent(self, line: Line, pods: tuple[Pod, ...]) -> float:
        """A new leader, a new pod and a sidecar that has just gone are all given time."""
        youngest = max((pod.meta.created for pod in pods if pod.live), default=self._now())
        spans = [self._monotonic() - self._leader_since(), (self._now() - youngest).total_seconds()]
        if line.disconnected_at is not None:
            spans.append(self._monotonic() - line.disconnected_at)
        return max(min(spans), 0.0)

    def _restoring(self, line: Line) -> str:
        note = next((each for each in line.restores.values() if each.outcome is None), None)
        if note is None:
            return ""
        wait = note.waits_for
        if wait is not None:
            return f"Pod {note.who.pod.name} waits: {wait.message}"
        return f"Pod {note.who.pod.name} restores {note.restores or 'nothing: it starts fresh'}."

    def _refused(self, line: Line, pods: tuple[Pod, ...]) -> str:
        """What the newest AgentRestore of the newest pod says, if that start has failed."""
        pod = next((each for each in reversed(pods) if each.live), None)
        if pod is None:
            return ""
        every = [each for each in self._world.restores.of(line.agent) if each.pod_uid == pod.meta.uid]
        last = max(every, key=lambda each: (each.meta.created, each.epoch), default=None)
        if last is None or not last.finished or last.succeeded:
            return ""
        told: dict[str, Any] = next(
            (each for each in last.status.get("conditions") or () if each.get("type") == "Succeeded"), {}
        )
        return f"Pod {pod.meta.name} cannot start: {last.reason}: {told.get('message', '')}"

    def _status(
        self, line: Line, item: AgentObject, policy: Policy | None, store_name: str, protection: Protection
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
        if line.who is not None:
            pod = line.who.pod
            patch["podRef"] = {"name": pod.name, "uid": pod.uid, "released": line.released_pod == pod.uid}
            patch["nodeName"] = line.who.node
        if line.session is not None:
            patch["sidecarVersion"] = line.session.sidecar_version
        self._tell_chain(line, item, patch)
        if line.recovery_point is not None:
            patch["recoveryPointTime"] = stamp(line.recovery_point)
        if line.failure is not None:
            failure = line.failure
            patch["lastFailure"] = {
                "reason": failure.reason,
                "time": stamp(failure.time),
                "message": failure.message[:2048],
            }
        if line.stored_bytes is not None:
            patch["storedSize"] = line.stored_bytes
            patch["summary"] = {"size": size_text(line.stored_bytes)}
        if line.uncertain is not None:
            patch["uncertainOperations"] = list(line.uncertain) or None
        return patch

    def _tell_chain(self, line: Line, item: AgentObject, patch: dict[str, Any]) -> None:
        if line.head is None or (item.pin is not None and line.head.record.sequence < item.pin[0]):
            return
        head = line.head.record
        patch |= {
            "epoch": head.epoch,
            "run": head.run,
            "head": {"sequence": head.sequence, "recordDigest": line.head.digest},
        }
        latest = dict(self._objects.latest(line))
        patch["latest"] = latest or None
