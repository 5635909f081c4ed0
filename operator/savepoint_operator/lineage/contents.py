"""Reads the contents of a committed checkpoint from its manifest if no offer described it: one bounded, blocking read.

A manifest that cannot be read now only makes the status shorter; it never costs the checkpoint.
"""

import logging

from savepoint.contract.control_protocol import ComponentSummary
from savepoint.errors import SavepointError
from savepoint.repository.format.commit import ChainRecord
from savepoint.repository.repository import Repository

from savepoint_operator.model.views import Contents
from savepoint_operator.rules.attempt import contents_problem, shortened

log = logging.getLogger(__name__)


def contents_of(repository: Repository, head: ChainRecord) -> Contents | None:
    """Return the contents of the record's checkpoint; None if it has none, or if its manifest cannot be shown."""
    record = head.record
    if record.kind != "checkpoint" or record.manifest is None:
        return None
    try:
        manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
    except SavepointError as error:
        log.warning("checkpoint %s: cannot read its manifest: %s; its status lacks the contents", record.name, error)
        return None
    contents = Contents(
        taken_at=manifest.created,
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
        shrinkages=manifest.shrinkages,
        capture=manifest.capture,
    )
    problem = contents_problem(contents)
    if problem:
        log.warning(
            "checkpoint %s: its manifest cannot be shown: %s; its status lacks the contents", record.name, problem
        )
        return None
    return shortened(contents)
