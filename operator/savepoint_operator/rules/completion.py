"""Whether a pod has ended its agent's run by exiting with 0. Pure.

It does not write the record that ends the run (``lineage``), and does not know whose epoch the pod holds. An agent that
is told to stop may exit with 0, too: what is drained, evicted or deleted is to go on elsewhere, and has ended nothing.
"""

from datetime import timedelta
from typing import Final

from savepoint_operator.model.objects import Pod

RUNS_ONCE: Final = ("Never", "OnFailure")
"""Restart policies under which an exit with 0 is the end: the kubelet starts nothing again."""
CLOCKS_APART: Final = timedelta(seconds=5)
"""By how much a node's clock, which tells the exit, may be behind the API server's, which tells the deletion; and both
are told in whole seconds."""


def ends_run(pod: Pod) -> bool:
    """Whether every container of the pod's own has exited with 0, for good and unasked.

    In doubt it has not: a run that goes on from its last checkpoint can be reset, work that is thrown away is lost.
    """
    if pod.phase != "Succeeded" or pod.restart_policy not in RUNS_ONCE or pod.disruption:
        return False
    if not pod.meta.deleting:
        return True
    if pod.exited is None or pod.deletion_asked is None:
        return False
    return pod.exited + CLOCKS_APART < pod.deletion_asked
