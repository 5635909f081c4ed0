"""An SDK's components, stored from the stage and restored into it: named values, inline as JSON text or as files.

When to do either is decided elsewhere (``checkpoint``, ``lifecycle.recovery``), and what the values mean is the SDK's
business. All calls block.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.vocabulary import Reason
from savepoint.errors import (
    DISK_FULL_ERRNOS,
    IntegrityError,
    NoSpace,
    Refused,
    SavepointError,
    StateUnstable,
    TargetUnusable,
)
from savepoint.repository.format.content import Content
from savepoint.repository.format.entry import EntryRecord
from savepoint.repository.format.manifest import ComponentRecord, Manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.write.source import FileSource
from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.files.roots import COMPONENT_PREFIX, open_directory
from savepoint_sidecar.files.walk import open_below
from savepoint_sidecar.stage.small_files import create_small_file, read_small_file

INLINE_VALUE_MAX_BYTES: Final = 64 << 10
INLINE_TOTAL_MAX_BYTES: Final = 512 << 10
"""For one answer to connect. JSON text is escaped once more there, which may double it."""
INDEX_MAX_BYTES: Final = 16 << 20
"""Room for the inline documents, escaped, and for a line for each value that is in a file."""
EPOCH_MAX_BYTES: Final = 32


def sdk_components(manifest: Manifest) -> tuple[ComponentRecord, ...]:
    """Return the components of a checkpoint that an SDK flushed, without the file trees."""
    return tuple(each for each in manifest.components if not each.name.startswith(COMPONENT_PREFIX))


def store_components(writer: CheckpointWriter, stage: Path, components: tuple[wire.Component, ...]) -> None:
    """Store the components of a flush.

    StateUnstable if a file of the stage is not what the flush described, Refused if a component cannot be stored.
    """
    for component in components:
        if component.name.startswith(COMPONENT_PREFIX):
            raise Refused(
                f"component name {component.name!r} is reserved for file trees; choose another name",
                Reason.NOT_ENCODABLE,
            )
        kind = component.kind

        def store(entry: wire.Entry, kind: str = kind) -> EntryRecord:
            return EntryRecord(entry.name, entry.encoding, _store_value(writer, stage, entry, kind), dict(entry.meta))

        try:
            writer.add_stored_entries(component.name, kind, writer.map(store, component.entries))
        except ValueError as error:
            raise Refused(f"cannot store component {component.name!r}: {error}", Reason.NOT_ENCODABLE) from error


def restore_components(
    reader: CheckpointReader,
    stage: Path,
    label: str,
    *,
    inline_max_bytes: int = INLINE_TOTAL_MAX_BYTES,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[wire.Component, ...]:
    """Restore an SDK's components: small documents inline, other values as files below ``stage/restored/<label>``.

    What an earlier call left there is removed. ``progress`` receives the total of bytes restored so far. NoSpace if
    the stage is full, TargetUnusable if it cannot be written for another reason.
    """
    top = stage_layout.restored_folder(stage)
    for each in top.iterdir() if top.is_dir() else ():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
    folder = top / label
    result: list[wire.Component] = []
    inline_left, number, done = inline_max_bytes, 0, 0
    for component in sdk_components(reader.manifest):
        entries: list[wire.Entry] = []
        for record in reader.read_entries(component).values():
            size = record.content.size
            if record.encoding == "json" and size <= min(inline_left, INLINE_VALUE_MAX_BYTES):
                inline_left -= size
                inline = _text(reader.read_content(record.content), component.name, record.name)
                entries.append(wire.Entry(record.name, record.encoding, size, inline=inline, meta=dict(record.meta)))
                done += size
                progress(done)
                continue
            path = stage_layout.restored_value(label, number)
            number += 1
            with _stage_errors(folder):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            done = _restore_value(reader, record, stage / path, progress, done)
            entries.append(wire.Entry(record.name, record.encoding, size, path=path, meta=dict(record.meta)))
        result.append(wire.Component(component.name, component.kind, tuple(entries)))  # type: ignore[arg-type]
    return tuple(result)


def write_index(stage: Path, sequence: int, components: tuple[wire.Component, ...]) -> None:
    """Record what the init container restored, for the sidecar to read. NoSpace or TargetUnusable as for values."""
    index = stage_layout.restored_index(stage)
    raw = {"sequence": sequence, "components": [each.to_wire() for each in components]}
    temporary = index.with_name(f".{index.name}")
    with _stage_errors(index):
        index.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with create_small_file(temporary) as file:
            file.write(json.dumps(raw).encode())
        temporary.replace(index)


def read_index(stage: Path, sequence: int) -> tuple[wire.Component, ...] | None:
    """Return the components that the init container restored from this checkpoint; None if it did not."""
    try:
        raw: Any = json.loads(read_small_file(stage_layout.restored_index(stage), INDEX_MAX_BYTES))
        if raw["sequence"] != sequence:
            return None
        return tuple(wire.Component.from_wire(each) for each in raw["components"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def index_sequence(stage: Path) -> int | None:
    """Return the sequence of the checkpoint that the init container restored; None if it restored none."""
    try:
        sequence = json.loads(read_small_file(stage_layout.restored_index(stage), INDEX_MAX_BYTES))["sequence"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return sequence if isinstance(sequence, int) and sequence > 0 else None


def prepare_stage(stage: Path, run: int) -> None:
    """Create the stage's folders, each writable by the side that owns it, and remove the journals of other runs."""
    _make_folder(stage_layout.agent_folder(stage), 0o777)
    _make_folder(stage_layout.journals_folder(stage), 0o777)
    _make_folder(stage_layout.restored_folder(stage), 0o755)
    sidecar = stage_layout.sidecar_folder(stage)
    _make_folder(sidecar, 0o700)
    for each in list(_leftovers(sidecar)):
        each.unlink(missing_ok=True)
    for each in stage_layout.journals_folder(stage).iterdir():
        if each.name != str(run) and each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)


def begin_epoch(stage: Path, epoch: int, run: int) -> None:
    """Remove the run's journal if this pod held another epoch before, because the agent was then rolled back.

    A pod that starts again keeps its epoch unless a rollback or a completion has ended it, and what was journaled
    after the chosen checkpoint must not be replayed.
    """
    note = stage_layout.epoch_file(stage)
    journal = stage_layout.journal_folder(stage, run)
    try:
        same = read_small_file(note, EPOCH_MAX_BYTES) == str(epoch)
    except FileNotFoundError:
        same = True  # nothing has run on this stage yet
    except (OSError, ValueError):
        same = False
    if not same and journal.exists():
        shutil.rmtree(journal)
    with create_small_file(note) as file:
        file.write(str(epoch).encode())


def _make_folder(path: Path, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    try:
        path.chmod(mode)
    except PermissionError:
        if not os.access(path, os.W_OK):
            raise


def _leftovers(folder: Path) -> Iterator[Path]:
    """Return the scratch files of a sidecar that was killed."""
    suffix, spool = stage_layout.DATABASE_COPY_SUFFIX, stage_layout.SPOOL_NAME
    return (each for each in folder.iterdir() if each.suffix == suffix or each.name == spool)


def _store_value(writer: CheckpointWriter, stage: Path, entry: wire.Entry, kind: str) -> Content:
    if entry.inline is not None:
        return writer.store_bytes(entry.inline.encode(), kind)
    assert entry.path is not None
    try:
        with open_directory(stage) as top:
            handle = open_below(top, entry.path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        message = f"cannot read value {entry.name!r} at {entry.path} in the stage: {error.strerror}"
        raise StateUnstable(message) from error
    try:
        size = os.fstat(handle).st_size
        if size != entry.size:
            raise StateUnstable(f"value {entry.name!r} has {size} bytes in the stage, but {entry.size} were flushed")
        return writer.store(FileSource(handle, size), kind)
    finally:
        os.close(handle)


def _restore_value(
    reader: CheckpointReader, record: EntryRecord, path: Path, progress: Callable[[int], None], done: int
) -> int:
    """Write one value to a file; return ``done`` plus the bytes written."""
    with _stage_errors(path), create_small_file(path) as file:

        def write(piece: bytes) -> None:
            nonlocal done
            file.write(piece)
            done += len(piece)
            progress(done)

        reader.read_content_into(record.content, write)
    return done


@contextmanager
def _stage_errors(path: Path) -> Iterator[None]:
    """Translate errors of the stage's file system. Only a full one becomes NoSpace, which names the field to raise."""
    try:
        yield
    except OSError as error:
        raise _stage_error(path, error) from error


def _stage_error(path: Path, error: OSError) -> SavepointError:
    failure = f"cannot write {path} in the stage: {error.strerror or error}"
    if error.errno in DISK_FULL_ERRNOS:
        return NoSpace(
            f"{failure}; raise spec.stage.sizeLimit in the policy if spec.stage.medium is Memory, or free space on the "
            "disk that holds the stage"
        )
    return TargetUnusable(f"{failure}; the stage must be a writable volume")


def _text(content: bytes, component: str, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise IntegrityError(f"document {name!r} of component {component!r} is not text in UTF-8", component) from error
