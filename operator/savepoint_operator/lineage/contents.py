"""What a committed checkpoint holds, read from its manifest where no offer was heard: blocking, one bounded read.

It judges nothing: a manifest that cannot be read now costs the words of a status, never a checkpoint.
"""

import logging

from savepoint.contract.control_protocol import ComponentSummary
from savepoint.errors import SavepointError
from savepoint.repository.format.commit import Head
from savepoint.repository.repository import Repository

from savepoint_operator.model.views import Contents
from savepoint_operator.rules.attempt import told_problem

log = logging.getLogger(__name__)


def contents_of(repository: Repository, head: Head) -> Contents | None:
    """What the record's manifest says; None where it is no checkpoint's, or says nothing that can be shown."""
    record = head.record
    if record.kind != "checkpoint" or record.manifest is None:
        return None
    try:
        manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
    except SavepointError as error:
        log.warning("checkpoint %s: its manifest cannot be read, its status stays short: %s", record.name, error)
        return None
    contents = Contents(
        cut=manifest.created,
        consistency=manifest.consistency,
        logical_bytes=manifest.size.logical,
        stored_bytes=manifest.size.stored,
        uploaded_bytes=manifest.size.uploaded,
        components=tuple(
            ComponentSummary(each.name, each.kind, each.digest, each.size) for each in manifest.components
        ),
        step=manifest.execution.step,
        open_operations=len(manifest.execution.open),
        uncertain_operations=manifest.execution.uncertain,
    )
    problem = told_problem(contents)
    if problem:
        log.warning("checkpoint %s: what its manifest says is not shown: %s", record.name, problem)
        return None
    return contents
