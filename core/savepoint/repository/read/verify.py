"""Reads everything a checkpoint refers to and reports what is damaged. It repairs and writes nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.manifest import ComponentRecord
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.read.fetch import Wanted
from savepoint.repository.read.reader import CheckpointReader, batches

BATCH_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged or missing object."""

    object_key: str
    component: str
    message: str


def verify(reader: CheckpointReader) -> list[Problem]:
    """Check a whole checkpoint.

    Args:
        reader: The checkpoint's reader.

    Returns:
        The problems; an empty list means that the checkpoint restores byte for byte. What lies below a damaged segment
        cannot be found, so only the segment is reported.

    Raises:
        StoreUnavailable, StoreDenied, StoreMisconfigured: The store cannot be read; the checkpoint may still be
            intact.
    """
    return [problem for component in reader.components for problem in _component_problems(reader, component)]


def _component_problems(reader: CheckpointReader, component: ComponentRecord) -> Iterator[Problem]:
    seen: set[tuple[str, str]] = set()
    for problem in _all_problems(reader, component):
        if (problem.object_key, problem.message) not in seen:
            seen.add((problem.object_key, problem.message))
            yield problem


def _all_problems(reader: CheckpointReader, component: ComponentRecord) -> Iterator[Problem]:
    try:
        for batch in batches(reader.references(component), BATCH_CHUNKS):
            yield from _chunk_problems(reader, component, batch)
    except (IntegrityError, ObjectMissing) as error:
        yield _problem(component, error, "")


def _chunk_problems(
    reader: CheckpointReader, component: ComponentRecord, refs: Iterable[ChunkRef]
) -> Iterator[Problem]:
    wanted = [Wanted(ref, None) for ref in refs]
    try:
        reader.fetcher.fetch(wanted, _discard)
    except (IntegrityError, ObjectMissing):
        for each in wanted:  # at least one is damaged: read each on its own, so that all are named
            try:
                reader.fetcher.fetch_one(each.ref)
            except (IntegrityError, ObjectMissing) as error:
                yield _problem(component, error, pack_key(each.ref.pack))


def _discard(_: None, content: memoryview) -> None:
    pass


def _problem(component: ComponentRecord, error: IntegrityError | ObjectMissing, key: str) -> Problem:
    named = error.object_key if isinstance(error, IntegrityError) else ""
    return Problem(named or key, component.name, str(error))
