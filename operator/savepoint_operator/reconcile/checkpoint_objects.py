"""AgentCheckpoint objects: finds the one of an attempt, creates one under the next number, writes its status.

It does not decide when a checkpoint is taken or what its status says.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from savepoint.contract.names import GROUP, LABEL_AGENT
from savepoint.contract.vocabulary import Trigger
from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.cluster.errors import Conflict
from savepoint_operator.cluster.kinds import CHECKPOINTS
from savepoint_operator.model.objects import CheckpointObject, ObjectKey
from savepoint_operator.model.views import AgentRef
from savepoint_operator.reconcile.agent_record import AgentRecord, AttemptRecord
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.reconcile.status_writer import StatusWriter
from savepoint_operator.rules.status.conditions import Condition

log = logging.getLogger(__name__)

ANNOTATION_ATTEMPT: Final = f"{GROUP}/attempt"
"""On objects that the operator creates: the attempt they belong to, even if the operator dies before writing status."""
MAX_NAME_TRIES: Final = 16


class CheckpointObjects:
    """Runs on the operator's event loop."""

    def __init__(self, cluster: ClusterClient, cache: ClusterCache, status_writer: StatusWriter) -> None:
        self._cluster, self._cache, self._status_writer = cluster, cache, status_writer

    def of(self, agent: AgentRef) -> list[CheckpointObject]:
        """Return the agent's objects, oldest first."""
        return self._cache.checkpoints.of(agent)

    def find(self, agent: AgentRef, attempt_id: str) -> CheckpointObject | None:
        """Return the object of an attempt."""
        items = self.of(agent)
        return next((each for each in items if attempt_id in (each.attempt, each.own_attempt)), None) or next(
            (each for each in items if each.meta.annotations.get(ANNOTATION_ATTEMPT) == attempt_id), None
        )

    def created_by_user(self, item: CheckpointObject) -> bool:
        """Return whether the object is a request; False if the operator created it for an attempt."""
        return ANNOTATION_ATTEMPT not in item.meta.annotations

    def latest_name(self, agent_record: AgentRecord) -> str:
        """Return the name of the checkpoint that a restart would restore now; empty if there is none."""
        return str(self.latest(agent_record).get("checkpointName") or "")

    def of_manifest(self, agent: AgentRef, digest: str) -> CheckpointObject | None:
        """Return the Ready object of a manifest."""
        ready = (each for each in self.of(agent) if each.ready)
        return next(
            (each for each in ready if (each.status.get("integrity") or {}).get("manifestDigest") == digest), None
        )

    def latest(self, agent_record: AgentRecord) -> Mapping[str, Any]:
        """Return ``ProtectedAgent.status.latest``: the checkpoint that the newest record points to; empty if none."""
        head = agent_record.head.record if agent_record.head is not None else None
        if head is None:
            return self._written_latest(agent_record)
        if head.manifest is None or head.kind == "completed":
            return {}
        record = agent_record.latest.record if agent_record.latest is not None else None
        if record is not None and record.manifest == head.manifest:
            # The object may have another name than the record: no object could be created when it was committed.
            item = self.find(agent_record.agent, record.attempt or "")
            name = item.meta.name if item is not None else record.name
            found = {"checkpointName": name, "sequence": record.sequence, "time": record.time}
            return {**found, "manifestDigest": head.manifest.name}
        item = self.of_manifest(agent_record.agent, head.manifest.name)
        if item is None:
            return self._written_latest(agent_record)
        found = {"checkpointName": item.meta.name, "sequence": item.sequence}
        time = (item.status.get("timing") or {}).get("completion")
        return {**found, **({"time": time} if time else {}), "manifestDigest": head.manifest.name}

    def latest_sequence(self, agent_record: AgentRecord) -> int:
        """Return the sequence up to which every checkpoint has been given its object."""
        seen = agent_record.latest.record.sequence if agent_record.latest is not None else 0
        return max(seen, int(self._written_latest(agent_record).get("sequence") or 0))

    async def ensure(self, agent_record: AgentRecord, attempt: AttemptRecord, head_number: int) -> CheckpointObject:
        """Return the attempt's object; create it if there is none. Raises Unavailable."""
        found = self.find(agent_record.agent, attempt.id)
        if found is not None:
            attempt.name, attempt.number = found.meta.name, found.number or attempt.number
            return found
        number = attempt.number or self._next_number(agent_record.agent, head_number)
        name = attempt.name or f"{agent_record.agent.name}-{number}"
        for _ in range(MAX_NAME_TRIES):
            try:
                item = await self._create(agent_record.agent, name, {ANNOTATION_ATTEMPT: attempt.id})
            except Conflict:
                await self._refresh(agent_record.agent, name)
                existing = self.find(agent_record.agent, attempt.id)
                if existing is not None:
                    item = existing
                else:
                    number += 1
                    name = f"{agent_record.agent.name}-{number}"
                    continue
            attempt.name, attempt.number = item.meta.name, number
            return await self.write_status(item, {"attempt": attempt.id, "number": number})
        raise Unavailable(
            f"no free name for a checkpoint of agent {agent_record.agent}: the {MAX_NAME_TRIES} names before "
            f"{name} are taken"
        )

    async def assign_number(self, attempt: AttemptRecord, item: CheckpointObject, head_number: int) -> int:
        """Return the number of the attempt's object, also if it cannot be written to the object now."""
        attempt.number = item.number or attempt.number or self._number_for(item, head_number)
        try:
            await self.write_status(item, {"number": attempt.number, "attempt": attempt.id})
        except SavepointError as error:
            log.warning("checkpoint %s: cannot write its number: %s; writing it later", item.meta.key, error)
        return attempt.number

    async def request(
        self, agent_record: AgentRecord, annotations: Mapping[str, str], requested_by: str
    ) -> CheckpointObject:
        """Create an object as a user would, for the annotation on a pod."""
        number = self._next_number(agent_record.agent, agent_record.head.record.number if agent_record.head else 0)
        for _ in range(MAX_NAME_TRIES):
            try:
                item = await self._create(agent_record.agent, f"{agent_record.agent.name}-{number}", annotations)
            except Conflict:
                await self._refresh(agent_record.agent, f"{agent_record.agent.name}-{number}")
                number += 1
                continue
            trigger = {"type": Trigger.MANUAL, "requestedBy": requested_by}
            return await self.write_status(item, {"number": number, "trigger": trigger})
        raise Unavailable(
            f"no free name for a checkpoint of agent {agent_record.agent}: the {MAX_NAME_TRIES} names before "
            f"{agent_record.agent.name}-{number} are taken"
        )

    async def write_status(
        self, item: CheckpointObject, patch: Mapping[str, Any], *conditions: Condition
    ) -> CheckpointObject:
        """Write the status; return the object as it is now, ``item`` itself if it no longer exists."""
        return await self._status_writer.write(CHECKPOINTS, item, patch, *conditions) or item

    async def label(self, item: CheckpointObject) -> CheckpointObject | None:
        """Add the agent's label, which every AgentCheckpoint carries; None if the object no longer exists."""
        return await self._status_writer.write_metadata(CHECKPOINTS, item, labels={LABEL_AGENT: item.agent.name})

    async def delete(self, item: CheckpointObject) -> None:
        """Delete exactly this object."""
        meta = item.meta
        await self._cluster.delete(CHECKPOINTS, meta.namespace, meta.name, meta.uid)
        identity = {"namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
        self._cache.checkpoints.remove({"metadata": identity})

    # -- internals ------------------------------------------------------------------------------------------------

    def _written_latest(self, agent_record: AgentRecord) -> Mapping[str, Any]:
        item = self._cache.agents.get(ObjectKey(*agent_record.agent))
        return (item.status.get("latest") or {}) if item is not None else {}

    def _next_number(self, agent: AgentRef, head_number: int, excluded_name: str = "") -> int:
        """Return a number above all known ones, including those in names: users choose names of their own."""
        others = [item for item in self.of(agent) if item.meta.name != excluded_name]
        return max([head_number, *(max(item.number, _number_in_name(item)) for item in others)]) + 1

    def _number_for(self, item: CheckpointObject, head_number: int) -> int:
        """Return the number in the object's name if it is above all others, else the next one."""
        return max(_number_in_name(item), self._next_number(item.agent, head_number, excluded_name=item.meta.name))

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
        raw = await self._cluster.create(CHECKPOINTS, body)
        self._cache.checkpoints.put(raw)
        created = self._cache.checkpoints.get(ObjectKey(agent.namespace, name))
        assert created is not None
        return created

    async def _refresh(self, agent: AgentRef, name: str) -> None:
        raw = await self._cluster.get(CHECKPOINTS, agent.namespace, name)
        if raw is not None:
            self._cache.checkpoints.put(raw)


def _number_in_name(item: CheckpointObject) -> int:
    """Return 7 for coder-7, 0 for a name of another form."""
    match = re.fullmatch(re.escape(item.agent.name) + r"-([0-9]{1,9})", item.meta.name)
    return int(match[1]) if match else 0
