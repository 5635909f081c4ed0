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
from savepoint_operator.reconcile.agent.chain_repair import Chronicle
from savepoint_operator.reconcile.agent.protected_agent import ProtectedAgents
from savepoint_operator.reconcile.agent.restores import Restores
from savepoint_operator.reconcile.agent.retention import Retention
from savepoint_operator.reconcile.agent_record import Lines
from savepoint_operator.reconcile.checkpoint_objects import CheckpointObjects
from savepoint_operator.reconcile.cluster_cache import World
from savepoint_operator.reconcile.cluster_client import Cluster
from savepoint_operator.reconcile.keyring import Keyring
from savepoint_operator.reconcile.pod_resolver import ClusterDirectory
from savepoint_operator.reconcile.policies import Surroundings
from savepoint_operator.reconcile.reconciler import Reconciler
from savepoint_operator.reconcile.recorder import QueueingRecorder
from savepoint_operator.reconcile.rollbacks import Rollbacks
from savepoint_operator.reconcile.stores import Builder, StoreBook
from savepoint_operator.reconcile.work_items import Work
from savepoint_operator.reconcile.work_queue import KeyedQueue

log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Parts:
    """What the process needs of it."""

    world: World
    lines: Lines
    queue: KeyedQueue[Work]
    directory: ClusterDirectory
    recorder: QueueingRecorder
    stores: StoreBook
    agents: Agents
    reconciler: Reconciler

    async def settle(self) -> None:
        """Before leadership ends: write what was told and is not written yet, within a bound."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                for line in self.lines.all():
                    if line.attempts or line.restores or line.released_pod:
                        try:
                            await self.agents.tell(line.agent)
                        except SavepointError as error:
                            log.warning("agent %s: its status was not written: %s", line.agent, error)
        except TimeoutError:
            log.warning("not every status could be written; the next leader repairs them from the chain")


def assemble(
    cluster: Cluster,
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
) -> Parts:
    """``owner``: the cluster's identity. ``random_part`` gives numbers from 0 to 1."""
    started = monotonic()

    def leader_since() -> float:
        return started

    world, lines = World(), Lines(random_part)
    queue: KeyedQueue[Work] = KeyedQueue(monotonic, random_part)
    keyring = Keyring(cluster, namespace, master_key_secret, random_bytes)
    stores = StoreBook(
        cluster,
        world,
        keyring,
        owner,
        events,
        now=now,
        monotonic=monotonic,
        random_bytes=random_bytes,
        build=build_store,
    )
    objects = CheckpointObjects(cluster, world, now)
    recorder = QueueingRecorder(lines, queue, objects, metrics, now=now, monotonic=monotonic, random_bytes=random_bytes)
    agents = Agents(
        world,
        lines,
        chronicle=Chronicle(world, stores, objects, recorder),
        attempts=Attempts(
            cluster,
            world,
            objects,
            recorder,
            events,
            now=now,
            monotonic=monotonic,
            random_bytes=random_bytes,
            leader_since=leader_since,
            not_running_seconds=not_running_seconds,
        ),
        restores=Restores(cluster, world, objects, events, now),
        retention=Retention(cluster, objects, metrics, collected=stores.collected, monotonic=monotonic),
        protected=ProtectedAgents(
            cluster, world, objects, events, now=now, monotonic=monotonic, leader_since=leader_since
        ),
    )
    reconciler = Reconciler(
        cluster,
        world,
        lines,
        queue,
        metrics,
        stores=stores,
        agents=agents,
        rollbacks=Rollbacks(
            cluster,
            world,
            lines,
            queue,
            objects=objects,
            recorder=recorder,
            events=events,
            now=now,
            monotonic=monotonic,
            leader_since=leader_since,
        ),
        surroundings=Surroundings(cluster, world, events, now),
        now=now,
    )
    return Parts(
        world=world,
        lines=lines,
        queue=queue,
        directory=ClusterDirectory(cluster, world, lines, events, monotonic),
        recorder=recorder,
        stores=stores,
        agents=agents,
        reconciler=reconciler,
    )
