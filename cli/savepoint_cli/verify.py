"""``savepoint verify``: read every byte of checkpoints and say what would not restore."""

import sys

from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.commit import CommitRecord
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.verify import verify
from savepoint.repository.repository import Repository

from savepoint_cli.log import human
from savepoint_cli.place import Place
from savepoint_cli.view import Agent, View, described, opened, records, title

EXIT_DAMAGED = 1


def verify_store(place: Place, *, every: bool) -> int:
    """Verify the newest checkpoint of each agent, or ``every`` one that was not collected; 1 if any is damaged."""
    with opened(place) as view:
        sound = [_sound(view, agent, every=every) for agent in view.agents(place.namespace, place.agent)]
    return 0 if all(sound) else EXIT_DAMAGED


def _sound(view: View, agent: Agent, *, every: bool) -> bool:
    """Whether nothing of the agent is damaged. What is damaged here does not keep other agents from being read."""
    try:
        repository = view.repository(agent)
        made = [head.record for head in records(repository) if head.record.kind == "checkpoint"]
    except IntegrityError as error:
        print(f"{agent}: {described(error)}", file=sys.stderr)
        return False
    if not made:
        print(f"{agent}: no checkpoint yet")
    sound = [_verify(repository, record, collected_is_fine=every) for record in (made if every else made[-1:])]
    return all(sound)


def _verify(repository: Repository, record: CommitRecord, *, collected_is_fine: bool) -> bool:
    assert record.manifest is not None and record.name is not None
    name = title(repository.namespace, record.name)
    try:
        manifest = repository.read_manifest(record.manifest.name, record.manifest.size)
    except ObjectMissing as error:
        if collected_is_fine:
            return True
        print(f"{name}: {described(error)}", file=sys.stderr)
        return False
    except IntegrityError as error:
        print(f"{name}: {described(error)}", file=sys.stderr)
        return False
    with CheckpointReader(repository.store, repository.key, manifest) as reader:
        problems = verify(reader)
    for problem in problems:
        print(f"{name}: {problem.object_key}: {problem.component}: {problem.message}", file=sys.stderr)
    if not problems:
        print(f"{name}: {human(manifest.size.logical)} in {len(manifest.components)} components, all readable")
    return not problems
