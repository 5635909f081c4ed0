"""AgentCheckpoint objects: finding the one of an attempt, making one under the next number, writing status.

It does not decide when a checkpoint is taken or what its status says.
"""

import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from savepoint.contract.names import GROUP, LABEL_AGENT
from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.cluster.errors import Conflict, Missing
from savepoint_operator.cluster.kinds import CHECKPOINTS
from savepoint_operator.model.objects import CheckpointObject, ObjectKey
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent_record import AgentRecord, AttemptRecord
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.rules.status import checkpoint_status
from savepoint_operator.rules.status.conditions import Condition, changed

log = logging.getLogger(__name__)

ANNOTATION_ATTEMPT: Final = f"{GROUP}/attempt"
"""On what the operator makes: whose attempt it is, even if the operator dies before it has written the status."""
NAME_TRIES: Final = 16


class CheckpointObjects:
    """Everything runs on the operator's event loop."""

    def __init__(self, cluster: ClusterClient, cache: ClusterCache, now: Callable[[], datetime]) -> None:
        self._cluster, self._cache, self._now = cluster, cache, now

    def of(self, agent: AgentRef) -> list[CheckpointObject]:
        """The agent's objects, oldest first."""
        return self._cache.checkpoints.of(agent)

    def find(self, agent: AgentRef, attempt: str) -> CheckpointObject | None:
        """The object of an attempt."""
        every = self.of(agent)
        return next((each for each in every if attempt in (each.attempt, each.own_attempt)), None) or next(
            (each for each in every if each.meta.annotations.get(ANNOTATION_ATTEMPT) == attempt), None
        )

    def asked_by_user(self, item: CheckpointObject) -> bool:
        """Whether it is a request, not made by the operator."""
        return ANNOTATION_ATTEMPT not in item.meta.annotations

    def latest_name(self, agent_record: AgentRecord) -> str:
        """The checkpoint that a restart now would restore, empty when there is none."""
        return str(self.latest(agent_record).get("checkpointName") or "")

    def of_manifest(self, agent: AgentRef, digest: str) -> CheckpointObject | None:
        """The Ready object of a manifest."""
        every = (each for each in self.of(agent) if each.ready)
        return next(
            (each for each in every if (each.status.get("integrity") or {}).get("manifestDigest") == digest), None
        )

    def latest(self, agent_record: AgentRecord) -> Mapping[str, Any]:
        """The same as ProtectedAgent.status.latest tells it: the checkpoint that the newest record points to."""
        head = agent_record.head.record if agent_record.head is not None else None
        if head is None:
            return self._latest(agent_record)
        if head.manifest is None or head.kind == "completed":
            return {}
        made = agent_record.latest.record if agent_record.latest is not None else None
        if made is not None and made.manifest == head.manifest:
            item = self.find(
                agent_record.agent, made.attempt or ""
            )  # it may have another name than could be given at the time
            name = item.meta.name if item is not None else made.name
            found = {"checkpointName": name, "sequence": made.sequence, "time": made.time}
            return {**found, "manifestDigest": head.manifest.name}
        item = self.of_manifest(agent_record.agent, head.manifest.name)
        if item is None:
            return self._latest(agent_record)
        found = {"checkpointName": item.meta.name, "sequence": item.sequence}
        time = (item.status.get("timing") or {}).get("completion")
        return {**found, **({"time": time} if time else {}), "manifestDigest": head.manifest.name}

    def latest_sequence(self, agent_record: AgentRecord) -> int:
        """The sequence up to which checkpoints are reflected in objects."""
        seen = agent_record.latest.record.sequence if agent_record.latest is not None else 0
        return max(seen, int(self._latest(agent_record).get("sequence") or 0))

    async def ensure(self, agent_record: AgentRecord, note: AttemptRecord, head_number: int) -> CheckpointObject:
        """The attempt's object; made now if there is none. Raises Unavailable."""
        found = self.find(agent_record.agent, note.id)
        if found is not None:
            note.name, note.number = found.meta.name, found.number or note.number
            return found
        number = note.number or self._next(agent_record.agent, head_number)
        name = note.name or f"{agent_record.agent.name}-{number}"
        for _ in range(NAME_TRIES):
            try:
                item = await self._create(agent_record.agent, name, {ANNOTATION_ATTEMPT: note.id})
            except Conflict:
                await self._refresh(agent_record.agent, name)
                taken = self.find(agent_record.agent, note.id)
                if taken is not None:
                    item = taken
                else:
                    number += 1
                    name = f"{agent_record.agent.name}-{number}"
                    continue
            note.name, note.number = item.meta.name, number
            return await self._patch(item, {"attempt": note.id, "number": number})
        raise Unavailable(
            f"no free name for a checkpoint of agent {agent_record.agent}: {name} and those before it are taken"
        )

    async def number(self, note: AttemptRecord, item: CheckpointObject, head_number: int) -> int:
        """The number of an object, also when it cannot be written now."""
        note.number = item.number or note.number or self._number_for(item, head_number)
        try:
            await self._patch(item, {"number": note.number, "attempt": note.id})
        except SavepointError as error:
            log.warning("checkpoint %s: its number is written later: %s", item.meta.key, error)
        return note.number

    async def request(
        self, agent_record: AgentRecord, annotations: Mapping[str, str], requested_by: str
    ) -> CheckpointObject:
        """An object as a user would create it, for the annotation on a pod."""
        number = self._next(agent_record.agent, agent_record.head.record.number if agent_record.head else 0)
        for _ in range(NAME_TRIES):
            try:
                item = await self._create(agent_record.agent, f"{agent_record.agent.name}-{number}", annotations)
            except Conflict:
                await self._refresh(agent_record.agent, f"{agent_record.agent.name}-{number}")
                number += 1
                continue
            trigger = {"type": "Manual", "requestedBy": requested_by}
            return await self._patch(item, {"number": number, "trigger": trigger})
        raise Unavailable(f"no free name for a checkpoint of agent {agent_record.agent}")

    async def write(self, item: CheckpointObject, patch: Mapping[str, Any], condition: Condition) -> CheckpointObject:
        """Write what is different."""
        status = checkpoint_status.status(item.status, dict(patch), condition, item.meta.generation, self._now())
        return await self._patch(item, status)

    async def label(self, item: CheckpointObject) -> CheckpointObject:
        """Every object of ours carries the agent's label."""
        if item.meta.labels.get(LABEL_AGENT) == item.agent.name:
            return item
        body = {"metadata": {"labels": {LABEL_AGENT: item.agent.name}}}
        return self._take(await self._cluster.patch(CHECKPOINTS, item.meta.namespace, item.meta.name, body))

    async def delete(self, item: CheckpointObject) -> None:
        """Exactly this object."""
        await self._cluster.delete(CHECKPOINTS, item.meta.namespace, item.meta.name, item.meta.uid)
        self._cache.checkpoints.remove({"metadata": {**_identity(item)}})

    # -- inside ---------------------------------------------------------------------------------------------------

    def _latest(self, agent_record: AgentRecord) -> Mapping[str, Any]:
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        return (item.status.get("latest") or {}) if item is not None else {}

    def _next(self, agent: AgentRef, head_number: int, but: str = "") -> int:
        """Above every number that is known; names count as well, since users choose theirs."""
        others = [item for item in self.of(agent) if item.meta.name != but]
        return max([head_number, *(max(item.number, _named(item)) for item in others)]) + 1

    def _number_for(self, item: CheckpointObject, head_number: int) -> int:
        """The one in its own name, where that is above all others."""
        return max(_named(item), self._next(item.agent, head_number, but=item.meta.name))

    async def _create(self, agent: AgentRef, name: str, annotations: Mapping[str, str]) -> CheckpointObject:
        body = {
            "metadata": {
                "namespace": agent.namespace,
                "name": name,
                "labels": {LABEL_AGENT: agent.name},
                "annotations": dict(annotations),
            },
            "spec": {"agent": agent.name},
        }
        return self._take(await self._cluster.create(CHECKPOINTS, body))

    async def _refresh(self, agent: AgentRef, name: str) -> None:
        raw = await self._cluster.get(CHECKPOINTS, agent.namespace, name)
        if raw is not None:
            self._cache.checkpoints.put(raw)

    async def _patch(self, item: CheckpointObject, status: Mapping[str, Any]) -> CheckpointObject:
        difference = changed(item.status, status)
        if not difference:
            return item
        try:
            raw = await self._cluster.patch(
                CHECKPOINTS, item.meta.namespace, item.meta.name, {"status": difference}, subresource="status"
            )
        except Missing:
            self._cache.checkpoints.remove({"metadata": {**_identity(item)}})
            return item
        return self._take(raw)

    def _take(self, raw: dict[str, Any]) -> CheckpointObject:
        self._cache.checkpoints.put(raw)
        found = self._cache.checkpoints.get(ObjectKey(raw["metadata"]["namespace"], raw["metadata"]["name"]))
        assert found is not None
        return found


def _named(item: CheckpointObject) -> int:
    """7 for coder-7, 0 for a name of another form."""
    named = re.fullmatch(re.escape(item.agent.name) + r"-([0-9]{1,9})", item.meta.name)
    return int(named[1]) if named else 0


def _identity(item: CheckpointObject) -> dict[str, str]:
    return {"namespace": item.meta.namespace, "name": item.meta.name, "uid": item.meta.uid}
