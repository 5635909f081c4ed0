"""The objects of the watched kinds in memory, as values, with the look-ups that the steps need.

Watches put and remove single objects; a listing replaces a whole kind, so that changes which a watch missed are
corrected. It is only a cache: what decides a grant is read from the API server, which also judges every write.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from savepoint_operator.cluster import kinds, parse
from savepoint_operator.cluster.kinds import Kind
from savepoint_operator.model.objects import (
    AgentObject,
    CheckpointObject,
    Meta,
    Node,
    ObjectKey,
    Pod,
    Policy,
    RestoreObject,
    Store,
    Workload,
)
from savepoint_operator.model.views import AgentRef
from savepoint_operator.rules.identity import agent_of
from savepoint_operator.rules.policy import matching_policies

DELETED_UIDS_KEPT: Final = 4096


class _HasMeta(Protocol):
    @property
    def meta(self) -> Meta: ...


V = TypeVar("V", bound=_HasMeta)


class KindCache(Generic[V]):
    """The objects of one kind, indexed by name and, if they belong to an agent, by agent."""

    def __init__(self, parse_one: Callable[[Mapping[str, Any]], V], agent: Callable[[V], AgentRef | None]) -> None:
        self._parse, self._agent = parse_one, agent
        self._by_key: dict[ObjectKey, V] = {}
        self._by_agent: dict[AgentRef, set[ObjectKey]] = {}
        self._deleted_uids: OrderedDict[str, None] = OrderedDict()

    def __iter__(self) -> Iterator[V]:
        return iter(list(self._by_key.values()))

    def get(self, key: ObjectKey) -> V | None:
        """Return the object with this name."""
        return self._by_key.get(key)

    def of(self, agent: AgentRef) -> list[V]:
        """Return the agent's objects, oldest first."""
        found = [self._by_key[key] for key in self._by_agent.get(agent, ())]
        return sorted(found, key=lambda each: (each.meta.created, each.meta.name))

    def agents(self) -> list[AgentRef]:
        """Return every agent that has an object of this kind."""
        return list(self._by_agent)

    def put(self, raw: Mapping[str, Any]) -> tuple[V | None, V | None]:
        """Store the object unless the cache has a newer version of it or knows that it was deleted.

        Return the cached object (before, after).
        """
        item = self._parse(raw)
        before = self._by_key.get(item.meta.key)
        if item.meta.uid in self._deleted_uids:
            return before, before
        if before is not None and before.meta.uid == item.meta.uid and item.meta.version < before.meta.version:
            return before, before
        self._discard(before)
        self._by_key[item.meta.key] = item
        agent = self._agent(item)
        if agent is not None:
            self._by_agent.setdefault(agent, set()).add(item.meta.key)
        return before, item

    def remove(self, raw: Mapping[str, Any]) -> V | None:
        """Remove the object, of which only the metadata is read; return it as it was cached, None if it was not."""
        meta = parse.meta_of(raw)
        self._deleted_uids[meta.uid] = None
        while len(self._deleted_uids) > DELETED_UIDS_KEPT:
            self._deleted_uids.popitem(last=False)
        before = self._by_key.get(meta.key)
        if before is None or before.meta.uid != meta.uid:
            return None
        self._discard(before)
        return before

    def is_behind(self, raw: Mapping[str, Any]) -> bool:
        """Return whether the cache lacks the object or has an older version of it."""
        meta = parse.meta_of(raw)
        known = self._by_key.get(meta.key)
        if known is None or known.meta.uid != meta.uid:
            return meta.uid not in self._deleted_uids and known is None
        return known.meta.version < meta.version

    def replace(self, raws: Iterable[Mapping[str, Any]]) -> list[V]:
        """Replace everything by a listing; return the cached objects that are not in it."""
        listed = list(raws)
        uids = {raw["metadata"].get("uid") for raw in listed}
        lost = [item for item in self._by_key.values() if item.meta.uid not in uids]
        for item in lost:
            self._discard(item)
        for raw in listed:
            self.put(raw)
        return lost

    def _discard(self, item: V | None) -> None:
        if item is None:
            return
        self._by_key.pop(item.meta.key, None)
        agent = self._agent(item)
        if agent is not None:
            keys = self._by_agent.get(agent, set())
            keys.discard(item.meta.key)
            if not keys:
                self._by_agent.pop(agent, None)


def _no_agent(_: object) -> None:
    return None


def _agent_of_pod(pod: Pod) -> AgentRef | None:
    agent = agent_of(pod)
    return agent if isinstance(agent, AgentRef) else None


def _agent_of_restore(restore: RestoreObject) -> AgentRef | None:
    return AgentRef(restore.meta.namespace, restore.agent_name) if restore.agent_name else None


class ClusterCache:
    """The caches of all watched kinds. Runs on the operator's event loop."""

    def __init__(self) -> None:
        self.stores: KindCache[Store] = KindCache(parse.store_of, _no_agent)
        self.policies: KindCache[Policy] = KindCache(parse.policy_of, _no_agent)
        self.agents: KindCache[AgentObject] = KindCache(parse.agent_of, lambda each: each.agent)
        self.checkpoints: KindCache[CheckpointObject] = KindCache(parse.checkpoint_of, lambda each: each.agent)
        self.restores: KindCache[RestoreObject] = KindCache(parse.restore_of, _agent_of_restore)
        self.pods: KindCache[Pod] = KindCache(parse.pod_of, _agent_of_pod)
        self.nodes: KindCache[Node] = KindCache(parse.node_of, _no_agent)
        self.workloads: dict[str, KindCache[Workload]] = {
            kind.kind: KindCache(parse.workload_of, _no_agent) for kind in kinds.WORKLOADS
        }
        self._by_kind: dict[str, KindCache[Any]] = {
            kinds.STORES.kind: self.stores,
            kinds.POLICIES.kind: self.policies,
            kinds.AGENTS.kind: self.agents,
            kinds.CHECKPOINTS.kind: self.checkpoints,
            kinds.RESTORES.kind: self.restores,
            kinds.PODS.kind: self.pods,
            kinds.NODES.kind: self.nodes,
            **self.workloads,
        }

    def of_kind(self, kind: Kind) -> KindCache[Any]:
        """Return the cache of a watched kind."""
        return self._by_kind[kind.kind]

    def policies_for(self, pod: Pod) -> list[Policy]:
        """Return the policies in the pod's namespace that select it; the first one applies."""
        return matching_policies(
            (each for each in self.policies if each.meta.namespace == pod.meta.namespace), pod.meta.labels
        )

    def pod_by_uid(self, agent: AgentRef, uid: str) -> Pod | None:
        """Return the agent's pod with this UID."""
        return next((each for each in self.pods.of(agent) if each.meta.uid == uid), None)

    def all_agents(self) -> set[AgentRef]:
        """Return every agent that has an object or a pod."""
        caches: tuple[KindCache[Any], ...] = (self.agents, self.checkpoints, self.restores, self.pods)
        return {agent for cache in caches for agent in cache.agents()}
