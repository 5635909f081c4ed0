"""What the cluster holds, in memory: the objects of the watched kinds, as values, with the look-ups that steps need.

Watches put and remove single objects; a listing replaces a kind whole, so that nothing which a watch missed stays. It
is a cache: what decides a grant is read afresh elsewhere, and every write is judged by the API server.
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
from savepoint_operator.rules.identity import agent_of, selecting

FORGOTTEN: Final = 4096


class _HasMeta(Protocol):
    @property
    def meta(self) -> Meta: ...


V = TypeVar("V", bound=_HasMeta)


class KindCache(Generic[V]):
    """The objects of one kind, also by agent where they have one."""

    def __init__(self, parse_one: Callable[[Mapping[str, Any]], V], agent: Callable[[V], AgentRef | None]) -> None:
        self._parse, self._agent = parse_one, agent
        self._by_key: dict[ObjectKey, V] = {}
        self._by_agent: dict[AgentRef, set[ObjectKey]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def __iter__(self) -> Iterator[V]:
        return iter(list(self._by_key.values()))

    def get(self, key: ObjectKey) -> V | None:
        """The object of this name."""
        return self._by_key.get(key)

    def of(self, agent: AgentRef) -> list[V]:
        """The agent's objects, oldest first."""
        found = [self._by_key[key] for key in self._by_agent.get(agent, ())]
        return sorted(found, key=lambda each: (each.meta.created, each.meta.name))

    def agents(self) -> list[AgentRef]:
        """Every agent that has an object here."""
        return list(self._by_agent)

    def put(self, raw: Mapping[str, Any]) -> tuple[V | None, V | None]:
        """(before, now). What is older than what is known, or known to be gone, changes nothing."""
        item = self._parse(raw)
        before = self._by_key.get(item.meta.key)
        if item.meta.uid in self._gone:
            return before, before
        if before is not None and before.meta.uid == item.meta.uid and item.meta.version < before.meta.version:
            return before, before
        self._forget(before)
        self._by_key[item.meta.key] = item
        agent = self._agent(item)
        if agent is not None:
            self._by_agent.setdefault(agent, set()).add(item.meta.key)
        return before, item

    def remove(self, raw: Mapping[str, Any]) -> V | None:
        """The object that was there."""
        meta = parse.meta_of(raw)
        self._gone[meta.uid] = None
        while len(self._gone) > FORGOTTEN:
            self._gone.popitem(last=False)
        before = self._by_key.get(meta.key)
        if before is None or before.meta.uid != meta.uid:
            return None
        self._forget(before)
        return before

    def lacks(self, raw: Mapping[str, Any]) -> bool:
        """Whether what is known is older than this."""
        meta = parse.meta_of(raw)
        known = self._by_key.get(meta.key)
        if known is None or known.meta.uid != meta.uid:
            return meta.uid not in self._gone and known is None
        return known.meta.version < meta.version

    def replace(self, raws: Iterable[Mapping[str, Any]]) -> list[V]:
        """Everything there is now. Those that had been known and are there no more."""
        listed = list(raws)
        uids = {raw["metadata"].get("uid") for raw in listed}
        lost = [item for item in self._by_key.values() if item.meta.uid not in uids]
        for item in lost:
            self._forget(item)
        for raw in listed:
            self.put(raw)
        return lost

    def _forget(self, item: V | None) -> None:
        if item is None:
            return
        self._by_key.pop(item.meta.key, None)
        agent = self._agent(item)
        if agent is not None:
            keys = self._by_agent.get(agent, set())
            keys.discard(item.meta.key)
            if not keys:
                self._by_agent.pop(agent, None)


def _nobody(_: object) -> None:
    return None


def _agent_of_pod(pod: Pod) -> AgentRef | None:
    agent = agent_of(pod)
    return agent if isinstance(agent, AgentRef) else None


def _agent_of_restore(restore: RestoreObject) -> AgentRef | None:
    return AgentRef(restore.meta.namespace, restore.agent_name) if restore.agent_name else None


class ClusterCache:
    """All shelves. Everything runs on the operator's event loop."""

    def __init__(self) -> None:
        self.stores: KindCache[Store] = KindCache(parse.store_of, _nobody)
        self.policies: KindCache[Policy] = KindCache(parse.policy_of, _nobody)
        self.agents: KindCache[AgentObject] = KindCache(parse.agent_of, lambda each: each.agent)
        self.checkpoints: KindCache[CheckpointObject] = KindCache(parse.checkpoint_of, lambda each: each.agent)
        self.restores: KindCache[RestoreObject] = KindCache(parse.restore_of, _agent_of_restore)
        self.pods: KindCache[Pod] = KindCache(parse.pod_of, _agent_of_pod)
        self.nodes: KindCache[Node] = KindCache(parse.node_of, _nobody)
        self.workloads: dict[str, KindCache[Workload]] = {
            kind.kind: KindCache(parse.workload_of, _nobody) for kind in kinds.WORKLOADS
        }

    def shelf(self, kind: Kind) -> KindCache[Any]:
        """The shelf of a watched kind."""
        named: dict[str, KindCache[Any]] = {
            kinds.STORES.kind: self.stores,
            kinds.POLICIES.kind: self.policies,
            kinds.AGENTS.kind: self.agents,
            kinds.CHECKPOINTS.kind: self.checkpoints,
            kinds.RESTORES.kind: self.restores,
            kinds.PODS.kind: self.pods,
            kinds.NODES.kind: self.nodes,
            **self.workloads,
        }
        return named[kind.kind]

    def policies_for(self, pod: Pod) -> list[Policy]:
        """Those of the pod's namespace that select it; the first one counts."""
        return selecting((each for each in self.policies if each.meta.namespace == pod.meta.namespace), pod)

    def pod_by_uid(self, agent: AgentRef, uid: str) -> Pod | None:
        """A pod of the agent by its uid."""
        return next((each for each in self.pods.of(agent) if each.meta.uid == uid), None)

    def every_agent(self) -> set[AgentRef]:
        """Every agent that some object or pod speaks of."""
        shelves: tuple[KindCache[Any], ...] = (self.agents, self.checkpoints, self.restores, self.pods)
        return {agent for shelf in shelves for agent in shelf.agents()}
