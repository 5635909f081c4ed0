"""``savepoint log``: an agent's checkpoint history, one line for each commit record."""

from savepoint.contract.vocabulary import Reason
from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.canonical import time_of
from savepoint.repository.format.commit import CommitRecord
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.repository import Repository

from savepoint_cli.store_options import StoreOptions
from savepoint_cli.view import Agent, StoreView, chain_records, open_view

_COLUMNS = ("TIME", "SEQ", "RUN", "EPOCH", "EVENT", "CHECKPOINT", "TRIGGER", "SIZE", "UPLOADED")
_EVENTS = {"grant": "start", "checkpoint": "checkpoint", "rollback": "rollback", "completed": "completed"}


def print_log(options: StoreOptions) -> int:
    """Print the history of every selected agent.

    Args:
        options: The store, and which of its agents to print.

    Returns:
        The exit status, 0.

    Raises:
        SavepointError: The store or an agent's chain cannot be read.
    """
    with open_view(options) as view:
        for agent in view.agents(options.namespace, options.agent):
            _print_agent(view, agent)
    return 0


def human_size(size: int) -> str:
    """Return a size in bytes below 1Ki, otherwise in the smallest binary unit that keeps the number below 10240."""
    for unit in ("B", "Ki", "Mi", "Gi"):
        if size < 1024 * (1 if unit == "B" else 10):
            return f"{size}{unit}"
        size = round(size / 1024)
    return f"{size}Ti"


def _print_agent(view: StoreView, agent: Agent) -> None:
    repository = view.repository(agent)
    print(f"agent {agent}")
    rows = [_COLUMNS, *(_row(repository, head.record) for head in chain_records(repository))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(repository: Repository, record: CommitRecord) -> tuple[str, ...]:
    local_time = time_of(record.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    size = uploaded = marks = ""
    if record.kind == "checkpoint" and record.manifest is not None:
        try:
            manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
            marks = f"{_shrank(manifest)}  {_inexact(manifest)}".strip()
            size, uploaded = human_size(manifest.size.logical), human_size(manifest.size.uploaded)
        except ObjectMissing:
            size = "collected"
        except IntegrityError:
            size = "damaged"
    return (
        local_time,
        str(record.sequence),
        str(record.run),
        str(record.epoch),
        _EVENTS[record.kind],
        record.name or "-",
        record.trigger or "-",
        size or "-",
        f"{uploaded or '-'}  {marks}".rstrip(),
    )


def _shrank(manifest: Manifest) -> str:
    """Return a mark if this checkpoint itself lost state; those after it only remember the loss."""
    parent = manifest.parent.sequence if manifest.parent else 0
    return Reason.STATE_SHRANK if any(each.sequence == parent for each in manifest.shrinkages) else ""


def _inexact(manifest: Manifest) -> str:
    """Return a mark if files are left out, or changed while they were captured; ``savepoint verify`` names them."""
    report = manifest.capture
    return Reason.STATE_INEXACT if report is not None and not report.is_exact else ""
