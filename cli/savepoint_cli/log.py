"""``savepoint log``: an agent's line of life, one line for each record of its chain."""

from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.canonical import time_of
from savepoint.repository.format.commit import CommitRecord
from savepoint.repository.repository import Repository

from savepoint_cli.place import Place
from savepoint_cli.view import Agent, View, opened, records

_COLUMNS = ("TIME", "SEQ", "RUN", "EPOCH", "EVENT", "CHECKPOINT", "TRIGGER", "SIZE", "UPLOADED")
_EVENTS = {"grant": "start", "checkpoint": "checkpoint", "rollback": "rollback", "completed": "completed"}


def print_log(place: Place) -> int:
    """Print the lines of every agent that was asked for."""
    with opened(place) as view:
        for agent in view.agents(place.namespace, place.agent):
            _print(view, agent)
    return 0


def human(size: int) -> str:
    """A size in the largest unit that leaves a number of at most four digits."""
    for unit in ("B", "Ki", "Mi", "Gi"):
        if size < 1024 * (1 if unit == "B" else 10):
            return f"{size}{unit}"
        size = round(size / 1024)
    return f"{size}Ti"


def _print(view: View, agent: Agent) -> None:
    repository = view.repository(agent)
    print(f"agent {agent}")
    rows = [_COLUMNS, *(_row(repository, head.record) for head in records(repository))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(repository: Repository, record: CommitRecord) -> tuple[str, ...]:
    local = time_of(record.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    size = uploaded = ""
    if record.kind == "checkpoint" and record.manifest is not None:
        try:
            manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
            size, uploaded = human(manifest.size.logical), human(manifest.size.uploaded)
        except ObjectMissing:
            size = "collected"
        except IntegrityError:
            size = "damaged"
    return (
        local,
        str(record.sequence),
        str(record.run),
        str(record.epoch),
        _EVENTS[record.kind],
        record.name or "-",
        record.trigger or "-",
        size or "-",
        uploaded or "-",
    )
