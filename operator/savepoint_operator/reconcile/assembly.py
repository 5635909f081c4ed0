"""Puts the parts of reconcile together. The process gives the door, clocks and randomness; nothing here decides."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from savepoint.errors import SavepointError
from savepoint.storage.s3 import S3Store

from savepoint_operator.cluster.events import Events
from savepoint_operator.metrics import Metrics
from savepoint_operator.reconcile.agent.agents import Agents
from savepoint_operator.reconcile.agent.attempts import Attempts
from savepoint_operator.reconcile.agent.chain_repair import ChainRepair
from savepoint_operator.reconcile.agent.protected_agent import ProtectedAgents
from savepoint_operator.reconcile.agent.restores import Restores
from savepoint_operator.reconcile.agent.retention import Retention
from savepoint_operator.reconcile.agent_record import AgentRecords
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient
from savepoint_operator.reconcile.keyring import Keyring
from savepoint_operator.reconcile.pod_resolver import ClusterPodResolver
from savepoint_operator.reconcile.policies import Policies
from savepoint_operator.reconcile.reconciler import Reconciler
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.reconcile.rollbacks import Rollbacks
from savepoint_operator.reconcile.stores import Builder, StoreRegistry
from savepoint_operator.reconcile.work_items import Work
from savepoint_operator.reconcile.work_queue import KeyedQueue

log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class ReconcileParts:
    """What the process needs of it."""

    cache: ClusterCache
    agent_records: AgentRecords
    queue: KeyedQueue[Work]
    directory: ClusterPodResolver
    recorder: QueueingRecorder
    stores: StoreRegistry
    agents: Agents
    reconciler: Reconciler

    async def settle(self) -> None:
        """Before leadership ends: write what was told and is not written yet, within a bound."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                for agent_record in self.agent_records.all():
                    if agent_record.attempts or agent_record.restores or agent_record.released_pod:
                        try:
                            await self.agents.tell(agent_record.agent)
                        except SavepointError as error:
                            log.warning("agent %s: its status was not written: %s", agent_record.agent, error)
        except TimeoutError:
            log.warning("not every status could be written; the next leader repairs them from the chain")


def assemble(
    cluster: ClusterClient,
    events: Events,
    metrics: Metrics,
    *,
    owner: str,
    namespace: str,
    master_key_secret: str,
    not_running_seconds: float,
    now: Callable[[], datetime],
    monotonic: Callable[[], float],
    random_bytes: Callable[[int], bytes],
    random_part: Callable[[], float],
    build_store: Builder = S3Store,
) -> ReconcileParts:
    """``owner``: the cluster's identity. ``random_part`` gives numbers from 0 to 1."""
    started = monotonic()

    def leader_since() -> float:
        return started

    cache, agent_records = ClusterCache(), AgentRecords(random_part)
    queue: KeyedQueue[Work] = KeyedQueue(monotonic, random_part)
    keyring = Keyring(cluster, namespace, master_key_secret, random_bytes)
    stores = StoreRegistry(
        cluster,
        cache,
        keyring,
        owner,
        events,
        now=now,
        monotonic=monotonic,
        random_bytes=random_bytes,
        build=build_store,
    )
    objects = CheckpointObjects(cluster, cache, now)
    recorder = QueueingRecorder(
        agent_records, queue, objects, metrics, now=now, monotonic=monotonic, random_bytes=random_bytes
    )
    agents = Agents(
        cache,
        agent_records,
        chronicle=ChainRepair(cache, stores, objects, recorder),
        attempts=Attempts(
            cluster,
            cache,
            objects,
            recorder,
            events,
            now=now,
            monotonic=monotonic,
            random_bytes=random_bytes,
            leader_since=leader_since,
            not_running_seconds=not_running_seconds,
        ),
        restores=Restores(cluster, cache, objects, events, now),
        retention=Retention(cluster, objects, metrics, collected=stores.collected, monotonic=monotonic),
        protected=ProtectedAgents(
            cluster, cache, objects, events, now=now, monotonic=monotonic, leader_since=leader_since
        ),
    )
    reconciler = Reconciler(
        cluster,
        cache,
        agent_records,
        queue,
        metrics,
        stores=stores,
        agents=agents,
        rollbacks=Rollbacks(
            cluster,
            cache,
            agent_records,
            queue,
            objects=objects,
            recorder=recorder,
            events=events,
            now=now,
            monotonic=monotonic,
            leader_since=leader_since,
        ),
        surroundings=Policies(cluster, cache, events, now),
        now=now,
    )
    return ReconcileParts(
        cache=cache,
        agent_records=agent_records,
        queue=queue,
        directory=ClusterPodResolver(cluster, cache, agent_records, events, monotonic),
        recorder=recorder,
        stores=stores,
        agents=agents,
        reconciler=reconciler,
    )
