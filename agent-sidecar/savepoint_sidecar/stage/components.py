"""What the SDK hands over, and gets back: components of named values, as lines of JSON and as files of the stage.

It neither decides when (``checkpoint``, ``barrier``) nor knows what the values mean. Blocking.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.errors import IntegrityError, NoSpace, Refused, SavepointError, StateUnstable, TargetUnusable
from savepoint.repository.format.content import Content
from savepoint.repository.format.entry import EntryRecord
from savepoint.repository.format.manifest import ComponentRecord, Manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.target import FULL
from savepoint.repository.write.source import FileSource
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.files.roots import COMPONENT_PREFIX, directory
from savepoint_sidecar.files.walk import open_below
from savepoint_sidecar.stage.small_files import create_own, read_own

INLINE_EACH_BYTES: Final = 64 << 10
INLINE_ALL_BYTES: Final = 512 << 10
"""Of one answer to connect; JSON text escaped once more may be twice as long."""
INDEX_NAME: Final = "index.json"
INDEX_MOST_BYTES: Final = 16 << 20
"""Inline documents, escaped, and a line for each value that lies in a file."""
EPOCH_NAME: Final = "epoch"
"""In the sidecar's part of the stage: the epoch that was last granted here."""
EPOCH_MOST_BYTES: Final = 32


def sdk_components(manifest: Manifest) -> tuple[ComponentRecord, ...]:
    """The components of a checkpoint that an SDK handed over."""
    return tuple(each for each in manifest.components if not each.name.startswith(COMPONENT_PREFIX))


def store_components(writer: CheckpointWriter, stage: Path, components: tuple[wire.Component, ...]) -> None:
    """Store what a flush holds. StateUnstable if a file of the stage is not as it was told, Refused if it cannot be."""
    for component in components:
        if component.name.startswith(COMPONENT_PREFIX):
            raise Refused(f"a component may not be named {component.name!r}: that is for files", "NotEncodable")
        kind = component.kind

        def store(entry: wire.Entry, kind: str = kind) -> EntryRecord:
            return EntryRecord(entry.name, entry.encoding, _store(writer, stage, entry, kind), dict(entry.meta))

        try:
            writer.add_stored_entries(component.name, kind, writer.map(store, component.entries))
        except ValueError as error:
            raise Refused(f"component {component.name!r} cannot be stored: {error}", "NotEncodable") from error


def restore_components(
    reader: CheckpointReader,
    stage: Path,
    label: str,
    *,
    bound: int = INLINE_ALL_BYTES,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[wire.Component, ...]:
    """Bring back what an SDK handed over: small documents inline, the rest as files below ``stage/restored/<label>``.

    What an earlier call left there is removed. NoSpace if the stage has no room, TargetUnusable if it cannot be written
    for another reason. ``progress`` is told the bytes brought back so far.
    """
    top = stage / wire.STAGE_RESTORED
    for each in top.iterdir() if top.is_dir() else ():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
    folder = top / label
    result: list[wire.Component] = []
    left, number, done = bound, 0, 0
    for component in sdk_components(reader.manifest):
        entries: list[wire.Entry] = []
        for record in reader.read_entries(component).values():
            size = record.content.size
            if record.encoding == "json" and size <= min(left, INLINE_EACH_BYTES):
                left -= size
                inline = _text(reader.read_content(record.content), component.name, record.name)
                entries.append(wire.Entry(record.name, record.encoding, size, inline=inline, meta=dict(record.meta)))
                done += size
                progress(done)
                continue
            path = f"{wire.STAGE_RESTORED}/{label}/{number}"
            number += 1
            with _translated(folder):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            done = _write(reader, record, stage / path, progress, done)
            entries.append(wire.Entry(record.name, record.encoding, size, path=path, meta=dict(record.meta)))
        result.append(wire.Component(component.name, component.kind, tuple(entries)))  # type: ignore[arg-type]
    return tuple(result)


def write_index(stage: Path, sequence: int, components: tuple[wire.Component, ...]) -> None:
    """Leave for the sidecar what an init container has brought back. NoSpace, TargetUnusable as for the values."""
    folder = stage / wire.STAGE_RESTORED
    raw = {"sequence": sequence, "components": [each.to_wire() for each in components]}
    temporary = folder / f".{INDEX_NAME}"
    with _translated(folder / INDEX_NAME):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with create_own(temporary) as file:
            file.write(json.dumps(raw).encode())
        temporary.replace(folder / INDEX_NAME)


def read_index(stage: Path, sequence: int) -> tuple[wire.Component, ...] | None:
    """What an init container brought back for this cut, None if that is not there."""
    try:
        raw: Any = json.loads(read_own(stage / wire.STAGE_RESTORED / INDEX_NAME, INDEX_MOST_BYTES))
        if raw["sequence"] != sequence:
            return None
        return tuple(wire.Component.from_wire(each) for each in raw["components"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def index_sequence(stage: Path) -> int | None:
    """Which cut an init container brought back; None if it brought back none."""
    try:
        sequence = json.loads(read_own(stage / wire.STAGE_RESTORED / INDEX_NAME, INDEX_MOST_BYTES))["sequence"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return sequence if isinstance(sequence, int) and sequence > 0 else None


def prepare_stage(stage: Path, run: int) -> None:
    """Make the stage's folders; both sides can write where the protocol says so. Journals of other runs are removed."""
    for name, mode in ((wire.STAGE_AGENT, 0o777), (wire.STAGE_JOURNAL, 0o777), (wire.STAGE_RESTORED, 0o755)):
        _folder(stage / name, mode)
    own = stage / wire.STAGE_SIDECAR
    _folder(own, 0o700)
    for each in list(_leftovers(own)):
        each.unlink(missing_ok=True)
    for each in (stage / wire.STAGE_JOURNAL).iterdir():
        if each.name != str(run) and each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)


def begin_epoch(stage: Path, epoch: int, run: int) -> None:
    """Remove the run's journal if this pod held another epoch before: then its lineage was rolled back.

    A pod asks again under the same epoch, unless a rollback or a completion has ended it, and what was journaled after
    the checkpoint that was chosen must not be replayed.
    """
    note = stage / wire.STAGE_SIDECAR / EPOCH_NAME
    journal = stage / wire.STAGE_JOURNAL / str(run)
    try:
        same = read_own(note, EPOCH_MOST_BYTES) == str(epoch)
    except FileNotFoundError:
        same = True  # nothing ran here yet
    except (OSError, ValueError):
        same = False
    if not same and journal.exists():
        shutil.rmtree(journal)
    with create_own(note) as file:
        file.write(str(epoch).encode())


def _folder(path: Path, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    try:
        path.chmod(mode)
    except PermissionError:
        if not os.access(path, os.W_OK):
            raise


def _leftovers(own: Path) -> Iterator[Path]:
    return (each for each in own.iterdir() if each.suffix == ".sqlite" or each.name == "pool")


def _store(writer: CheckpointWriter, stage: Path, entry: wire.Entry, kind: str) -> Content:
    if entry.inline is not None:
        return writer.store_bytes(entry.inline.encode(), kind)
    assert entry.path is not None
    try:
        with directory(stage) as top:
            handle = open_below(top, entry.path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        message = f"the value {entry.name!r} is not at {entry.path} in the stage: {error.strerror}"
        raise StateUnstable(message) from error
    try:
        size = os.fstat(handle).st_size
        if size != entry.size:
            raise StateUnstable(f"the value {entry.name!r} has {size} bytes in the stage, {entry.size} were flushed")
        return writer.store(FileSource(handle, size), kind)
    finally:
        os.close(handle)


def _write(
    reader: CheckpointReader, record: EntryRecord, path: Path, progress: Callable[[int], None], done: int
) -> int:
    """``done`` and what was written here, together."""
    with _translated(path), create_own(path) as file:

        def write(piece: bytes) -> None:
            nonlocal done
            file.write(piece)
            done += len(piece)
            progress(done)

        reader.read_content_into(record.content, write)
    return done


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What the stage's file system says, as our errors: a full one is no other fault, and has a field to raise."""
    try:
        yield
    except OSError as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: OSError) -> SavepointError:
    what = f"{path} in the stage cannot be written: {error.strerror or error}"
    if error.errno in FULL:
        return NoSpace(
            f"{what}; raise spec.stage.sizeLimit in the policy if spec.stage.medium is Memory, or free some of the "
            "disk that the stage lies on"
        )
    return TargetUnusable(f"{what}; the stage must be a writable volume")


def _text(content: bytes, component: str, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise IntegrityError(f"the document {name!r} of component {component!r} is no text", component) from error
