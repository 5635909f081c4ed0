"""The step for the ProtectedAgent: the agent's protection state and the pin of its chain.

It runs after the steps that write the other objects, so that the pin never claims more than those show.
"""

from typing import Any

from savepoint.contract.names import LABEL_AGENT
from savepoint.contract.vocabulary import ProtectionState, Reason, RestoreOutcome

from savepoint_operator.cluster.errors import Conflict
from savepoint_operator.cluster.events import EventTarget
from savepoint_operator.cluster.kinds import AGENTS, CHECKPOINTS, PODS
from savepoint_operator.model.objects import AgentObject, Interval, ObjectKey, Pod, Policy
from savepoint_operator.reconcile.agent_record import AgentRecord
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.dependencies import StepDependencies
from savepoint_operator.rules.crash_loop import Crashes, crashes_of
from savepoint_operator.rules.protection import Facts, Protection, judge
from savepoint_operator.rules.status.conditions import Condition, parsed_time, stamp
from savepoint_operator.rules.status.shrinkage import Loss, newest_loss
from savepoint_operator.rules.status.texts import size_text, uid_text

_SAFE = (ProtectionState.PROTECTED, ProtectionState.COMPLETED)
_UNSAFE = (ProtectionState.AT_RISK, ProtectionState.UNPROTECTED)


class ProtectedAgents:
    """Steps of one agent's reconcile: the first one creates the object, the last one but collection writes it."""

    def __init__(self, dependencies: StepDependencies, objects: CheckpointObjects) -> None:
        self._cluster, self._cache, self._events = dependencies.cluster, dependencies.cache, dependencies.events
        self._status_writer, self._leader_since = dependencies.status_writer, dependencies.leader_since
        self._now, self._monotonic = dependencies.clocks.now, dependencies.clocks.monotonic
        self._objects = objects

    async def ensure(self, agent_record: AgentRecord) -> AgentObject | None:
        """Return the agent's object; create it if there is none and a pod or a record proves that the agent exists."""
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

    async def write_status(self, agent_record: AgentRecord, policy: Policy | None, store_name: str) -> None:
        """Write the status, and an Event if the agent is no longer protected."""
        item = await self.ensure(agent_record)
        if item is None or item.meta.deleting:
            return
        crashes = self._crashes(agent_record)
        protection = self._judge(agent_record, item, policy, crashes)
        condition = Condition.of("Protected", protection.holds, protection.reason, protection.message)
        loss = newest_loss(self._objects.of(agent_record.agent))
        patch = self._status(agent_record, item, policy, store_name, protection)
        patch |= crashes.status()
        patch["shrank"] = loss and dict(loss.status)
        written = await self._status_writer.write(AGENTS, item, patch, condition)
        if written is None:
            return
        target = EventTarget.of(AGENTS, item.meta)
        await self._report_loss(item, loss)
        await self._report_crashes(item, crashes)
        if item.reason in _SAFE and protection.reason in _UNSAFE:
            await self._events.warning(target, protection.reason, protection.message)
        uid = patch.get("runAsUser")
        if uid and uid != item.status.get("runAsUser"):
            await self._events.normal(target, Reason.UID_OBSERVED, uid_text(uid))

    async def _report_loss(self, item: AgentObject, loss: Loss | None) -> None:
        """Write Events about a loss of state that the agent's status did not name yet."""
        known = (item.status.get("shrank") or {}).get("sequence", 0)
        if loss is None or loss.status["sequence"] <= known:
            return
        for target in (EventTarget.of(AGENTS, item.meta), EventTarget.of(CHECKPOINTS, loss.checkpoint.meta)):
            await self._events.warning(target, Reason.STATE_SHRANK, loss.status["message"])

    # -- protection -----------------------------------------------------------------------------------------------

    def _judge(
        self, agent_record: AgentRecord, item: AgentObject, policy: Policy | None, crashes: Crashes
    ) -> Protection:
        pods = tuple(self._cache.pods.of(agent_record.agent))
        node_name = next((pod.node for pod in reversed(pods) if pod.live and pod.node), "")
        node = self._cache.nodes.get(ObjectKey("", node_name)) if node_name else None
        interval = policy.interval if policy is not None else Interval()
        failure = (agent_record.failure.reason, agent_record.failure.message) if agent_record.failure else None
        return judge(
            Facts(
                pods=pods,
                connected=agent_record.session is not None,
                restoring=self._restoring(agent_record),
                start_failure=self._start_failure(agent_record, pods),
                completed=agent_record.completed,
                latest_name=self._objects.latest_name(agent_record),
                recovery_point=agent_record.recovery_point or parsed_time(item.status.get("recoveryPointTime")),
                failure=failure,
                lost_node=node_name if node is not None and node.lost else "",
                interval=None if policy is not None and policy.suspend else interval,
                disconnected_seconds=self._disconnected_seconds(agent_record, pods),
                now=self._now(),
                crash_loop=crashes.message,
            )
        )

    def _crashes(self, agent_record: AgentRecord) -> Crashes:
        """Return how often the running pod's containers were restarted since its state was restored."""
        pod = next((each for each in reversed(self._cache.pods.of(agent_record.agent)) if each.live), None)
        if pod is None:
            return Crashes()
        starts = [each for each in self._cache.restores.of(agent_record.agent) if each.pod_uid == pod.meta.uid]
        last = max(starts, key=lambda each: (each.meta.created, each.epoch), default=None)
        if last is None or last.reason not in (RestoreOutcome.RESTORED, RestoreOutcome.KEPT_LOCAL):
            return Crashes()
        restored = str((last.status.get("resolved") or {}).get("checkpointName") or "its state")
        return crashes_of(pod, restored, self._objects.of(agent_record.agent), self._now())

    async def _report_crashes(self, item: AgentObject, crashes: Crashes) -> None:
        """Write Events about a container that began to crash again and again."""
        if crashes.loop is None or item.status.get("crashLoop"):
            return
        for target in (EventTarget.of(AGENTS, item.meta), EventTarget.of(PODS, crashes.loop.pod.meta)):
            await self._events.warning(target, Reason.CRASH_LOOPING, crashes.message)

    def _disconnected_seconds(self, agent_record: AgentRecord, pods: tuple[Pod, ...]) -> float:
        """Return for how long a sidecar could have connected and has not.

        The shortest of three spans, so that a new leader, a new pod and a lost connection are each given time.
        """
        youngest = max((pod.meta.created for pod in pods if pod.live), default=self._now())
        spans = [self._monotonic() - self._leader_since, (self._now() - youngest).total_seconds()]
        if agent_record.disconnected_at is not None:
            spans.append(self._monotonic() - agent_record.disconnected_at)
        return max(min(spans), 0.0)

    def _restoring(self, agent_record: AgentRecord) -> str:
        """Return what a pod that is starting waits for or restores; empty if none is starting."""
        restore = next((each for each in agent_record.restores.values() if each.outcome is None), None)
        if restore is None:
            return ""
        pod, wait = restore.incarnation.pod.name, restore.waits_for
        if wait is not None:
            return f"Pod {pod} waits: {wait.message}"
        return (
            f"Pod {pod} restores {restore.checkpoint_name}." if restore.checkpoint_name else f"Pod {pod} starts fresh."
        )

    def _start_failure(self, agent_record: AgentRecord, pods: tuple[Pod, ...]) -> str:
        """Return the message of the newest pod's newest AgentRestore if that start has failed, else an empty text."""
        pod = next((each for each in reversed(pods) if each.live), None)
        if pod is None:
            return ""
        starts = [each for each in self._cache.restores.of(agent_record.agent) if each.pod_uid == pod.meta.uid]
        last = max(starts, key=lambda each: (each.meta.created, each.epoch), default=None)
        if last is None or not last.finished or last.succeeded:
            return ""
        condition: dict[str, Any] = next(
            (each for each in last.status.get("conditions") or () if each.get("type") == "Succeeded"), {}
        )
        return f"Pod {pod.meta.name} cannot start: {last.reason}: {condition.get('message', '')}"

    # -- status ---------------------------------------------------------------------------------------------------

    def _status(
        self,
        agent_record: AgentRecord,
        item: AgentObject,
        policy: Policy | None,
        store_name: str,
        protection: Protection,
    ) -> dict[str, Any]:
        patch: dict[str, Any] = {
            "reason": protection.reason,
            "policyName": policy.meta.name if policy is not None else None,
        }
        if store_name:
            patch["storeName"] = store_name
        if agent_record.incarnation is not None:
            pod = agent_record.incarnation.pod
            patch["podRef"] = {"name": pod.name, "uid": pod.uid, "released": agent_record.released_pod == pod.uid}
            patch["nodeName"] = agent_record.incarnation.node
            if agent_record.incarnation.workload:
                patch["workload"] = agent_record.incarnation.workload
        if agent_record.session is not None:
            patch["sidecarVersion"] = agent_record.session.sidecar_version
        self._add_chain(agent_record, item, patch)
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
        if agent_record.uncertain_operations is not None:
            patch["uncertainOperations"] = list(agent_record.uncertain_operations) or None
        if agent_record.agent_uid is not None:
            patch["runAsUser"] = agent_record.agent_uid or None  # never 0: only a person may choose that
        return patch

    def _add_chain(self, agent_record: AgentRecord, item: AgentObject, patch: dict[str, Any]) -> None:
        """Add the newest record, unless the pin is newer: the pin only moves forward."""
        if agent_record.head is None or (item.pin is not None and agent_record.head.record.sequence < item.pin[0]):
            return
        head = agent_record.head.record
        patch |= {
            "epoch": head.epoch,
            "run": head.run,
            "head": {"sequence": head.sequence, "recordDigest": agent_record.head.digest},
        }
        patch["latest"] = dict(self._objects.latest(agent_record)) or None
