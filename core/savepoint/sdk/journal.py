"""The journal: an append-only log of finished steps and of effects, in files numbered by the cut they follow.

Record: 4 bytes big-endian length, 4 bytes CRC-32 of the body, body (JSON). It does not know what a record means, and
it is not thread-safe: the caller holds the agent's lock.
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
    """Where finished steps and effects go between two cuts."""

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        """Records of file ``number`` and those after it, in order; once it is through, appending is possible."""

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        """Write one record; ``durable``: it survives the machine. Raises StageFull, NotEncodable, Unavailable."""

    def rotate(self) -> int:
        """The number that a cut taken now must name: what is appended from here on follows the cut."""

    def forget(self, below: int) -> None:
        """A cut that names ``below`` is committed: older files may go."""

    def close(self) -> None:
        """Let go of the file."""


class NoJournal:
    """For an agent that nothing will ever bring back."""

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        return iter(())

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        pass

    def rotate(self) -> int:
        return 0

    def forget(self, below: int) -> None:
        pass

    def close(self) -> None:
        pass


class FileJournal:
    """The journal of one run, in ``directory``. ``durable=False``: nothing needs to survive the machine."""

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._directory = directory
        self._durable = durable
        self._number = 0
        self._descriptor = -1
        self._end = 0
        self._entered = False  # whether the file's name is known to be on disk

    def replay(self, number: int) -> Iterator[dict[str, Any]]:
        """See Journal. Files that do not follow on ``number`` without a gap are removed."""
        found = self._numbers()
        for item in found:
            if item < number:
                self._path(item).unlink(missing_ok=True)
        at = number
        while at in found:
            yield from _records(self._path(at))
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
                if not self._entered:
                    _sync_directory(self._directory)
                    self._entered = True
        except OSError as error:
            self._cut_back()
            raise _translated(error, self._path(self._number)) from error
        self._end += len(data)

    def rotate(self) -> int:
        if self._end:
            previous = self._descriptor
            self._open(self._number + 1)
            os.close(previous)
        return self._number

    def forget(self, below: int) -> None:
        for number in self._numbers():
            if number < below and number != self._number:
                self._path(number).unlink(missing_ok=True)

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
            raise _translated(error, path) from error
        self._number, self._end, self._entered = number, 0, False

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError as error:
            log.warning("the journal could not be cut back after a failed write: %s", error)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.log"

    def _numbers(self) -> set[int]:
        try:
            return {int(path.stem) for path in self._directory.glob("*.log") if path.stem.isdecimal()}
        except OSError as error:
            raise _translated(error, self._directory) from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of one file; what is behind a torn or damaged one is dropped."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise _translated(error, path) from error
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
        log.warning("journal %s: dropped a torn record and what follows it, %d bytes", path.name, len(data) - at)
        return


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: OSError, path: Path) -> StageFull | Unavailable:
    if error.errno in DISK_FULL_ERRNOS:
        return StageFull(f"no room for the journal {path.name}: make the stage volume larger")
    return Unavailable(f"journal {path.name}: {error.strerror}")
