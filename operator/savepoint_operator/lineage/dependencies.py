"""The ports that the lineage service is given. Values only."""

from dataclasses import dataclass

from savepoint_operator.model.ports import Liveness, PodResolver, Recorder, Stores


@dataclass(frozen=True)
class LineagePorts:
    """The ports through which the service reaches stores, cluster, recorder and connections."""

    stores: Stores
    pod_resolver: PodResolver
    recorder: Recorder
    liveness: Liveness
