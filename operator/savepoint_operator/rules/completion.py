"""The rule that decides whether a pod has ended its agent's run by exiting with 0. Pure.

It does not write the record that ends the run (``lineage``) and does not know which pod holds the epoch. An agent that
is asked to stop may exit with 0, too: a pod that is drained, evicted or deleted has a successor and has ended no run.
"""

from datetime import timedelta
from typing import Final

from savepoint_operator.model.objects import Pod

RUNS_ONCE: Final = ("Never", "OnFailure")
"""Restart policies under which an exit with 0 is final: the kubelet does not restart the container."""
CLOCK_SKEW: Final = timedelta(seconds=5)
"""Time by which a node's clock, which dates the exit, may be behind the API server's, which dates the deletion.

It also covers that both times are in whole seconds.
"""


def ends_run(pod: Pod) -> bool:
    """Return whether all of the pod's own containers have exited with 0, on their own and for the last time.

    In doubt it returns False: a run that resumes from its last checkpoint can be reset, discarded work is lost.
    """
    if pod.phase != "Succeeded" or pod.restart_policy not in RUNS_ONCE or pod.disruption:
        return False
    if not pod.meta.deleting:
        return True
    if pod.exited is None or pod.deletion_requested is None:
        return False
    return pod.exited + CLOCK_SKEW < pod.deletion_requested
