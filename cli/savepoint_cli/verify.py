"""``savepoint verify``: read every byte of checkpoints and say what would not restore."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.commit import CommitRecord
from savepoint.repository.reader import CheckpointReader
from savepoint.repository.repository import Repository
from savepoint.repository.verify import verify

from savepoint_cli.local_store import described, records, repositories
from savepoint_cli.log import human

EXIT_DAMAGED = 1


def verify_store(path: Path, agent: str | None, *, every: bool) -> int:
    """Verify the newest checkpoint of each agent, or ``every`` one that was not collected; 1 if any is damaged."""
    sound = True
    for repository in repositories(path, agent, datetime.now(UTC)):
        made = [head.record for head in records(repository) if head.record.kind == "checkpoint"]
        if not made:
            print(f"{repository.agent}: no checkpoint yet")
        for record in made if every else made[-1:]:
            sound &= _verify(repository, record, collected_is_fine=every)
    return 0 if sound else EXIT_DAMAGED


def _verify(repository: Repository, record: CommitRecord, *, collected_is_fine: bool) -> bool:
    assert record.manifest is not None
    try:
        manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
    except ObjectMissing as error:
        if collected_is_fine:
            return True
        print(f"{record.name}: {described(error)}", file=sys.stderr)
        return False
    except IntegrityError as error:
        print(f"{record.name}: {described(error)}", file=sys.stderr)
        return False
    with CheckpointReader(repository.store, repository.key, manifest) as reader:
        problems = verify(reader)
    for problem in problems:
        print(f"{record.name}: {problem.object_key}: {problem.component}: {problem.message}", file=sys.stderr)
    if not problems:
        print(f"{record.name}: {human(manifest.size.logical)} in {len(manifest.components)} components, all readable")
    return not problems
