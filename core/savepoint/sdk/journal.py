"""The journal: an append-only log of finished steps and of effects, in files numbered by the checkpoint they follow.

Record: 4 bytes big-endian length, 4 bytes CRC-32 of the body, body (JSON). The journal does not know what a record
means. It is not thread-safe: the caller holds the agent's lock.
"""

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from savepoint.errors import DISK_FULL_ERRNOS, StageFull, Unavailable
from savepoint.sdk.encoding import utf8
from savepoint.sdk.errors import NotEncodable

RECORD_MAX_BYTES: Final = 32 << 20
_HEAD: Final = struct.Struct(">II")
_sync = getattr(os, "fdatasync", os.fsync)

log = logging.getLogger("savepoint")


class Journal(Protocol):
    """The record of finished steps and effects between two checkpoints."""

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield the records of file ``number`` and of those after it, in order.

        Records can be appended once the iterator is exhausted.
        """

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        """Write one record. Raises StageFull, NotEncodable, Unavailable.

        A ``durable`` record is synced to disk, so that it survives a crash of the machine.
        """

    def rotate(self) -> int:
        """Start a new file, unless the current one has no records, and return the number of the current file.

        A checkpoint taken now names this number: its journal consists of all records appended from now on.
        """

    def delete_below(self, number: int) -> None:
        """Delete the files with lower numbers, because a checkpoint that names ``number`` is committed."""

    def close(self) -> None:
        """Close the file."""


class NoJournal:
    """A journal for an agent whose state is never restored: it records nothing."""

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        return iter(())

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        pass

    def rotate(self) -> int:
        return 0

    def delete_below(self, number: int) -> None:
        pass

    def close(self) -> None:
        pass


class FileJournal:
    """The journal of one run, in ``directory``. With ``durable=False`` no record is ever synced to disk."""

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._directory = directory
        self._durable = durable
        self._number = 0
        self._descriptor = -1
        self._end = 0
        self._directory_synced = False  # True if the file's directory entry is known to be on disk

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        """See Journal. Files that do not follow ``number`` without a gap are removed."""
        found = self._numbers()
        for item in found:
            if item < number:
                self._path(item).unlink(missing_ok=True)
        at = number
        while at in found:
            yield from _read_records(self._path(at))
            at += 1
        for item in found:
            if item > at:
                self._path(item).unlink(missing_ok=True)
        self._open(at)

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        body = utf8(json.dumps(record, ensure_ascii=False, separators=(",", ":")))
        if len(body) > RECORD_MAX_BYTES:
            raise NotEncodable(
                f"a result of {len(body)} bytes is too large for the journal (at most {RECORD_MAX_BYTES}): "
                f"write it to a file below a state path and return the file's name"
            )
        data = memoryview(_HEAD.pack(len(body), zlib.crc32(body)) + body)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            if durable and self._durable:
                _sync(self._descriptor)
                if not self._directory_synced:
                    _sync_directory(self._directory)
                    self._directory_synced = True
        except OSError as error:
            self._discard_partial_record()
            raise _journal_error(error, self._path(self._number)) from error
        self._end += len(data)

    def rotate(self) -> int:
        if self._end:
            previous = self._descriptor
            self._open(self._number + 1)
            os.close(previous)
        return self._number

    def delete_below(self, number: int) -> None:
        for found in self._numbers():
            if found < number and found != self._number:
                self._path(found).unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, number: int) -> None:
        path = self._path(number)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise _journal_error(error, path) from error
        self._number, self._end, self._directory_synced = number, 0, False

    def _discard_partial_record(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError as error:
            log.warning(
                "journal %s: cannot truncate a partly written record: %s; it and what follows it will be ignored",
                self._path(self._number).name,
                error,
            )

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.log"

    def _numbers(self) -> set[int]:
        try:
            return {int(path.stem) for path in self._directory.glob("*.log") if path.stem.isdecimal()}
        except OSError as error:
            raise _journal_error(error, self._directory) from error


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the intact records of one file, up to the first torn or damaged one."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise _journal_error(error, path) from error
    at = 0
    while at < len(data):
        body = data[at + _HEAD.size : at + _HEAD.size]
        if len(data) - at >= _HEAD.size:
            length, checksum = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(body) == length and length and zlib.crc32(body) == checksum:
                at += _HEAD.size + length
                yield json.loads(bytes(body))
                continue
        log.warning("journal %s: dropped a torn record and what follows it: %d bytes", path.name, len(data) - at)
        return


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _journal_error(error: OSError, path: Path) -> StageFull | Unavailable:
    """Return the SavepointError for a failed call on a journal file."""
    if error.errno in DISK_FULL_ERRNOS:
        return StageFull(f"no room for the journal {path.name}: make the stage volume larger")
    return Unavailable(f"journal {path.name}: {error.strerror}")
