"""``savepoint verify``: read every byte of checkpoints and report what could not be restored."""

import sys

from savepoint.contract.capture_report import CaptureReport
from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.commit import CommitRecord
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.verify import verify
from savepoint.repository.repository import Repository

from savepoint_cli.log import human_size
from savepoint_cli.store_options import StoreOptions
from savepoint_cli.view import Agent, StoreView, chain_records, describe, display_name, open_view

EXIT_DAMAGED = 1


def verify_store(options: StoreOptions, *, every: bool) -> int:
    """Verify the checkpoints of every selected agent, and print one line for each.

    Args:
        options: The store, and which of its agents to verify.
        every: Verify all checkpoints that were not collected, not only each agent's newest.

    Returns:
        The exit status: 0 if all are intact, 1 if any is damaged.

    Raises:
        SavepointError: The store cannot be read.
    """
    with open_view(options) as view:
        intact = [_agent_intact(view, agent, every=every) for agent in view.agents(options.namespace, options.agent)]
    return 0 if all(intact) else EXIT_DAMAGED


def _agent_intact(view: StoreView, agent: Agent, *, every: bool) -> bool:
    """Verify one agent. Damage is printed, not raised, so that the other agents are verified too."""
    try:
        repository = view.repository(agent)
        made = [head.record for head in chain_records(repository) if head.record.kind == "checkpoint"]
    except IntegrityError as error:
        print(f"{agent}: {describe(error)}", file=sys.stderr)
        return False
    if not made:
        print(f"{agent}: no checkpoint yet")
    selected = made if every else made[-1:]
    intact = [_checkpoint_intact(repository, record, may_be_collected=every) for record in selected]
    return all(intact)


def _checkpoint_intact(repository: Repository, record: CommitRecord, *, may_be_collected: bool) -> bool:
    assert record.manifest is not None and record.name is not None
    name = display_name(repository.namespace, record.name)
    try:
        manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
    except ObjectMissing as error:
        if may_be_collected:
            return True
        print(f"{name}: {describe(error)}", file=sys.stderr)
        return False
    except IntegrityError as error:
        print(f"{name}: {describe(error)}", file=sys.stderr)
        return False
    with CheckpointReader(repository.store, repository.key, manifest) as reader:
        problems = verify(reader)
    for problem in problems:
        print(f"{name}: {problem.object_key}: {problem.component}: {problem.message}", file=sys.stderr)
    if not problems:
        count = len(manifest.components)
        components = "1 component" if count == 1 else f"{count} components"
        print(f"{name}: {human_size(manifest.size.logical)} in {components}, all readable")
    if manifest.capture is not None:
        _print_inexact(name, manifest.capture)
    return not problems


def _print_inexact(name: str, report: CaptureReport) -> None:
    """Print what the checkpoint does not hold, or not as of one moment. That does not count as damage."""
    for each in report.left_out:
        print(f"{name}: left out: {each.path}: {each.reason}")
    for path in report.unstable:
        print(f"{name}: changed while it was captured: {path}")
    more = report.left_out_count + report.unstable_count - len(report.left_out) - len(report.unstable)
    if more:
        print(f"{name}: and {more} more that are left out or changed while they were captured")
