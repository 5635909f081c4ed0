"""Assembles reconcile from the dependencies that the process supplies. It decides nothing."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from savepoint.errors import SavepointError

from savepoint_operator.cluster.kinds import Kind
from savepoint_operator.reconcile.agent.agents import Agents
from savepoint_operator.reconcile.agent.attempt_status import AttemptStatus
from savepoint_operator.reconcile.agent.attempts import Attempts
from savepoint_operator.reconcile.agent.chain_repair import ChainRepair
from savepoint_operator.reconcile.agent.protected_agent import ProtectedAgents
from savepoint_operator.reconcile.agent.restores import Restores
from savepoint_operator.reconcile.agent.retention import Retention
from savepoint_operator.reconcile.agent_record import AgentRecords
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import Raw
from savepoint_operator.reconcile.dependencies import ReconcileDependencies, StepDependencies
from savepoint_operator.reconcile.keyring import Keyring
from savepoint_operator.reconcile.pod_resolver import ClusterPodResolver
from savepoint_operator.reconcile.policies import Policies
from savepoint_operator.reconcile.reconciler import Reconciler, Reconcilers
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.reconcile.rollbacks import Rollbacks
from savepoint_operator.reconcile.status_writer import StatusWriter
from savepoint_operator.reconcile.stores import StoreRegistry
from savepoint_operator.reconcile.work_items import Work
from savepoint_operator.reconcile.work_queue import KeyedQueue

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 5.0


@dataclass(frozen=True)
class ReconcileParts:
    """The parts of reconcile that the process uses."""

    cache: ClusterCache
    agent_records: AgentRecords
    queue: KeyedQueue[Work]
    pod_resolver: ClusterPodResolver
    recorder: QueueingRecorder
    stores: StoreRegistry
    agents: Agents
    reconciler: Reconciler

    async def flush(self) -> None:
        """Write what was reported and is not written yet, for at most FLUSH_SECONDS; called before leadership ends."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                for agent_record in self.agent_records.all():
                    if agent_record.attempts or agent_record.restores or agent_record.released_pod:
                        try:
                            await self.agents.write_status(agent_record.agent)
                        except SavepointError as error:
                            log.warning(
                                "agent %s: cannot write its status: %s; the next leader repairs it from the chain",
                                agent_record.agent,
                                error,
                            )
        except TimeoutError:
            log.warning("cannot write every status in time; the next leader repairs them from the chain")


def assemble(dependencies: ReconcileDependencies) -> ReconcileParts:
    """Return the parts of reconcile for one period of leadership, which begins now."""

    def observe_deletion(kind: Kind, raw: Raw) -> None:
        reconciler.observe(kind, True, raw)

    clocks, random_bytes = dependencies.clocks, dependencies.random_bytes
    cache, agent_records = ClusterCache(), AgentRecords(dependencies.random_fraction)
    queue: KeyedQueue[Work] = KeyedQueue(clocks.monotonic, dependencies.random_fraction)
    steps = StepDependencies(
        cluster=dependencies.cluster,
        cache=cache,
        events=dependencies.events,
        metrics=dependencies.metrics,
        status_writer=StatusWriter(dependencies.cluster, cache, clocks.now, observe_deletion),
        clocks=clocks,
        random_bytes=random_bytes,
        leader_since=clocks.monotonic(),
    )
    keyring = Keyring(steps.cluster, dependencies.namespace, dependencies.master_key_secret, random_bytes)
    stores = StoreRegistry(steps, keyring, dependencies.cluster_id, dependencies.build_store)
    objects = CheckpointObjects(steps.cluster, cache, steps.status_writer)
    recorder = QueueingRecorder(agent_records, queue, objects, steps.metrics, clocks=clocks, random_bytes=random_bytes)
    attempt_status = AttemptStatus(steps, objects, recorder)
    agents = Agents(
        cache,
        agent_records,
        chain_repair=ChainRepair(cache, stores, objects, recorder),
        attempt_status=attempt_status,
        attempts=Attempts(
            steps, objects, recorder, attempt_status, not_running_seconds=dependencies.not_running_seconds
        ),
        restores=Restores(steps, objects),
        retention=Retention(steps, objects, stores.record_collection),
        protected=ProtectedAgents(steps, objects),
    )
    rollbacks = Rollbacks(steps, agent_records, queue, objects=objects, recorder=recorder)
    reconcilers = Reconcilers(stores, agents, rollbacks, Policies(steps))
    reconciler = Reconciler(steps, agent_records, queue, reconcilers)
    return ReconcileParts(
        cache=cache,
        agent_records=agent_records,
        queue=queue,
        pod_resolver=ClusterPodResolver(steps.cluster, cache, agent_records, steps.events, clocks.monotonic),
        recorder=recorder,
        stores=stores,
        agents=agents,
        reconciler=reconciler,
    )
