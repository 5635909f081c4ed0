"""Reads everything a checkpoint refers to and says what is damaged. It repairs nothing and writes nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from savepoint.errors import IntegrityError, ObjectMissing
from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.manifest import ComponentRecord
from savepoint.repository.read.fetch import Wanted
from savepoint.repository.read.reader import CheckpointReader, batches
from savepoint.repository.repository import pack_key

BATCH_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged or missing thing."""

    object_key: str
    component: str
    message: str


def verify(reader: CheckpointReader) -> list[Problem]:
    """The problems of the checkpoint; an empty list means that it restores byte for byte.

    What lies below a damaged segment cannot be found, so that segment stands for it.

    StoreUnavailable and StoreDenied are raised, not listed: they say nothing about the checkpoint.
    """
    return [problem for component in reader.components for problem in _of_component(reader, component)]


def _of_component(reader: CheckpointReader, component: ComponentRecord) -> Iterator[Problem]:
    seen: set[tuple[str, str]] = set()
    for problem in _all_of_component(reader, component):
        if (problem.object_key, problem.message) not in seen:
            seen.add((problem.object_key, problem.message))
            yield problem


def _all_of_component(reader: CheckpointReader, component: ComponentRecord) -> Iterator[Problem]:
    try:
        for batch in batches(reader.references(component), BATCH_CHUNKS):
            yield from _of_chunks(reader, component, batch)
    except (IntegrityError, ObjectMissing) as error:
        yield _problem(component, error, "")


def _of_chunks(reader: CheckpointReader, component: ComponentRecord, refs: Iterable[ChunkRef]) -> Iterator[Problem]:
    wanted = [Wanted(ref, None) for ref in refs]
    try:
        reader.fetcher.fetch(wanted, _forget)
    except (IntegrityError, ObjectMissing):
        for each in wanted:  # one of many is damaged: ask for each, so that all are named
            try:
                reader.fetcher.one(each.ref)
            except (IntegrityError, ObjectMissing) as error:
                yield _problem(component, error, pack_key(each.ref.pack))


def _forget(_: None, content: memoryview) -> None:
    pass


def _problem(component: ComponentRecord, error: IntegrityError | ObjectMissing, key: str) -> Problem:
    named = error.object_key if isinstance(error, IntegrityError) else ""
    return Problem(named or key, component.name, str(error))
