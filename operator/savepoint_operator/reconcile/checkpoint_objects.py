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
from savepoint_operator.model.views import AgentKey
from savepoint_operator.reconcile.agent_record import AttemptNote, Line
from savepoint_operator.reconcile.cluster_cache import World
from savepoint_operator.reconcile.cluster_client import Cluster
from savepoint_operator.rules.status import checkpoint_status
from savepoint_operator.rules.status.conditions import Condition, changed

log = logging.getLogger(__name__)

ANNOTATION_ATTEMPT: Final = f"{GROUP}/attempt"
"""On what the operator makes: whose attempt it is, even if the operator dies before it has written the status."""
NAME_TRIES: Final = 16


class CheckpointObjects:
    """Everything runs on the operator's event loop."""

    def __init__(self, cluster: Cluster, world: World, now: Callable[[], datetime]) -> None:
        self._cluster, self._world, self._now = cluster, world, now

    def of(self, agent: AgentKey) -> list[CheckpointObject]:
        """The agent's objects, oldest first."""
        return self._world.checkpoints.of(agent)

    def find(self, agent: AgentKey, attempt: str) -> CheckpointObject | None:
        """The object of an attempt."""
        every = self.of(agent)
        return next((each for each in every if attempt in (each.attempt, each.own_attempt)), None) or next(
            (each for each in every if each.meta.annotations.get(ANNOTATION_ATTEMPT) == attempt), None
        )

    def asked_by_user(self, item: CheckpointObject) -> bool:
        """Whether it is a request, not made by the operator."""
        return ANNOTATION_ATTEMPT not in item.meta.annotations

    def latest_name(self, line: Line) -> str:
        """The checkpoint that a restart now would restore, empty when there is none."""
        return str(self.latest(line).get("checkpointName") or "")

    def of_manifest(self, agent: AgentKey, digest: str) -> CheckpointObject | None:
        """The Ready object of a manifest."""
        every = (each for each in self.of(agent) if each.ready)
        return next(
            (each for each in every if (each.status.get("integrity") or {}).get("manifestDigest") == digest), None
        )

    def latest(self, line: Line) -> Mapping[str, Any]:
        """The same as ProtectedAgent.status.latest tells it: the checkpoint that the newest record points to."""
        head = line.head.record if line.head is not None else None
        if head is None:
            return self._latest(line)
        if head.manifest is None or head.kind == "completed":
            return {}
        made = line.latest.record if line.latest is not None else None
        if made is not None and made.manifest == head.manifest:
            item = self.find(line.agent, made.attempt or "")  # it may have another name than could be given at the time
            name = item.meta.name if item is not None else made.name
            found = {"checkpointName": name, "sequence": made.sequence, "time": made.time}
            return {**found, "manifestDigest": head.manifest.name}
        item = self.of_manifest(line.agent, head.manifest.name)
        if item is None:
            return self._latest(line)
        found = {"checkpointName": item.meta.name, "sequence": item.sequence}
        time = (item.status.get("timing") or {}).get("completion")
        return {**found, **({"time": time} if time else {}), "manifestDigest": head.manifest.name}

    def latest_sequence(self, line: Line) -> int:
        """The sequence up to which checkpoints are reflected in objects."""
        seen = line.latest.record.sequence if line.latest is not None else 0
        return max(seen, int(self._latest(line).get("sequence") or 0))

    async def ensure(self, line: Line, note: AttemptNote, head_number: int) -> CheckpointObject:
        """The attempt's object; made now if there is none. Raises Unavailable."""
        found = self.find(line.agent, note.id)
        if found is not None:
            note.name, note.number = found.meta.name, found.number or note.number
            return found
        number = note.number or self._next(line.agent, head_number)
        name = note.name or f"{line.agent.name}-{number}"
        for _ in range(NAME_TRIES):
            try:
                item = await self._create(line.agent, name, {ANNOTATION_ATTEMPT: note.id})
            except Conflict:
                await self._refresh(line.agent, name)
                taken = self.find(line.agent, note.id)
                if taken is not None:
                    item = taken
                else:
                    number += 1
                    name = f"{line.agent.name}-{number}"
                    continue
            note.name, note.number = item.meta.name, number
            return await self._patch(item, {"attempt": note.id, "number": number})
        raise Unavailable(f"no free name for a checkpoint of agent {line.agent}: {name} and those before it are taken")

    async def number(self, note: AttemptNote, item: CheckpointObject, head_number: int) -> int:
        """The number of an object, also when it cannot be written now."""
        note.number = item.number or note.number or self._number_for(item, head_number)
        try:
            await self._patch(item, {"number": note.number, "attempt": note.id})
        except SavepointError as error:
            log.warning("checkpoint %s: its number is written later: %s", item.meta.key, error)
        return note.number

    async def request(self, line: Line, annotations: Mapping[str, str], requested_by: str) -> CheckpointObject:
        """An object as a user would create it, for the annotation on a pod."""
        number = self._next(line.agent, line.head.record.number if line.head else 0)
        for _ in range(NAME_TRIES):
            try:
                item = await self._create(line.agent, f"{line.agent.name}-{number}", annotations)
            except Conflict:
                await self._refresh(line.agent, f"{line.agent.name}-{number}")
                number += 1
                continue
            trigger = {"type": "Manual", "requestedBy": requested_by}
            return await self._patch(item, {"number": number, "trigger": trigger})
        raise Unavailable(f"no free name for a checkpoint of agent {line.agent}")

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
        self._world.checkpoints.remove({"metadata": {**_identity(item)}})

    # -- inside ---------------------------------------------------------------------------------------------------

    def _latest(self, line: Line) -> Mapping[str, Any]:
        item = self._world.agents.get(ObjectKey(*line.agent))
        return (item.status.get("latest") or {}) if item is not None else {}

    def _next(self, agent: AgentKey, head_number: int, but: str = "") -> int:
        """Above every number that is known; names count as well, since users choose theirs."""
        others = [item for item in self.of(agent) if item.meta.name != but]
        return max([head_number, *(max(item.number, _named(item)) for item in others)]) + 1

    def _number_for(self, item: CheckpointObject, head_number: int) -> int:
        """The one in its own name, where that is above all others."""
        return max(_named(item), self._next(item.agent, head_number, but=item.meta.name))

    async def _create(self, agent: AgentKey, name: str, annotations: Mapping[str, str]) -> CheckpointObject:
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

    async def _refresh(self, agent: AgentKey, name: str) -> None:
        raw = await self._cluster.get(CHECKPOINTS, agent.namespace, name)
        if raw is not None:
            self._world.checkpoints.put(raw)

    async def _patch(self, item: CheckpointObject, status: Mapping[str, Any]) -> CheckpointObject:
        difference = changed(item.status, status)
        if not difference:
            return item
        try:
            raw = await self._cluster.patch(
                CHECKPOINTS, item.meta.namespace, item.meta.name, {"status": difference}, subresource="status"
            )
        except Missing:
            self._world.checkpoints.remove({"metadata": {**_identity(item)}})
            return item
        return self._take(raw)

    def _take(self, raw: dict[str, Any]) -> CheckpointObject:
        self._world.checkpoints.put(raw)
        found = self._world.checkpoints.get(ObjectKey(raw["metadata"]["namespace"], raw["metadata"]["name"]))
        assert found is not None
        return found


def _named(item: CheckpointObject) -> int:
    """7 for coder-7, 0 for a name of another form."""
    named = re.fullmatch(re.escape(item.agent.name) + r"-([0-9]{1,9})", item.meta.name)
    return int(named[1]) if named else 0


def _identity(item: CheckpointObject) -> dict[str, str]:
    return {"namespace": item.meta.namespace, "name": item.meta.name, "uid": item.meta.uid}
