"""The chunks that the next checkpoint can refer to instead of storing them again.

Compact, about 60 bytes per chunk, because a state may have millions. Thread-safe. It holds only the chunks in packs of
the parent's manifest and those that the current attempt has stored; it never searches the store.
"""

import struct
import threading
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.manifest import Pack

_RECORD = struct.Struct("<32sIIII")
_PLACE = struct.Struct("<IIII")
_ID_BYTES = 32
_MIN_SLOTS = 1024
_MAX_UNUSED_PACKS = 256

_UNUSED, _PARENT, _OWN, _TO_REPACK, _LEFTOVER = range(5)
"""States of a pack: no longer referred to; the parent's; the current attempt's; the parent's, but to be repacked;
uploaded by an abandoned attempt."""


@dataclass(frozen=True, slots=True)
class PackUse:
    """A pack of the parent, and how much of it the parent still refers to."""

    name: str
    size: int
    live: int
    """Stored bytes of the chunks that the parent refers to."""


class ChunkIndex:
    """Chunks by id. An attempt begins, adds and marks chunks; then it is committed or abandoned."""

    _records: bytearray
    _slots: "array[int]"
    _marked: bytearray
    """One byte per record: whether the attempt refers to it."""
    _names: list[str]
    _sizes: list[int]
    _states: list[int]
    _live: list[int]
    """Stored bytes that the parent refers to, by pack."""
    _next_live: list[int]
    """Stored bytes that the attempt refers to, by pack."""
    _numbers: dict[str, int]
    _used: set[int]
    """The packs that the attempt refers to."""
    _undo: dict[int, bytes]
    """Places in the parent's packs that the attempt has overwritten, by record."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def __len__(self) -> int:
        """Return the number of known chunks, including those that can no longer be referred to."""
        return self._count

    def pack_uses(self) -> list[PackUse]:
        """Return how much of each of its packs the parent uses."""
        with self._lock:
            return [
                PackUse(self._names[number], self._sizes[number], self._live[number])
                for number, state in enumerate(self._states)
                if state in {_PARENT, _TO_REPACK}
            ]

    def begin(self, repack: Iterable[str] = ()) -> None:
        """Start an attempt. Chunks in the packs to repack become unknown once the attempt stores something new."""
        with self._lock:
            self._clear_attempt()
            for name in repack:
                self._states[self._numbers[name]] = _TO_REPACK

    def lose(self, names: Iterable[str]) -> None:
        """Treat the chunks in these packs as unknown from now on, because the store does not hold the packs."""
        with self._lock:
            for name in names:
                if name in self._numbers:
                    self._states[self._numbers[name]] = _UNUSED

    def start_repacking(self) -> None:
        """Treat the chunks in the packs to repack as unknown from now on."""
        self._repacking = True

    def find(self, identity: bytes) -> ChunkRef | None:
        """Return where the chunk is, if it may be referred to."""
        with self._lock:
            record = self._lookup(identity)
            return self._usable_ref(record) if record >= 0 else None

    def all_usable(self, packs: Iterable[str]) -> bool:
        """Return whether chunks in all these packs may be referred to."""
        with self._lock:
            numbers = (self._numbers.get(name) for name in packs)
            return all(number is not None and self._is_usable(self._states[number]) for number in numbers)

    def add(self, ref: ChunkRef) -> ChunkRef:
        """Add a chunk that the attempt stored; if another thread added it first, return that thread's reference."""
        with self._lock:
            self._repacking = True
            return self._add(ref)

    def mark(self, ref: ChunkRef) -> None:
        """Record that the attempt's checkpoint refers to this chunk."""
        with self._lock:
            number = self._numbers[ref.pack]
            self._used.add(number)
            record = self._lookup(ref.id)
            if record >= 0 and self._ref(record)[1:3] == ref[1:3]:
                if self._marked[record]:
                    return
                self._marked[record] = 1
            self._next_live[number] += ref.stored

    def mark_listed(self, packs: Iterable[str], ids: Iterable[bytes]) -> None:
        """Record that the attempt's checkpoint refers, through segments, to chunks with these ids in these packs."""
        with self._lock:
            self._used.update(self._numbers[name] for name in packs)
            for identity in ids:
                record = self._lookup(identity)
                if record >= 0 and not self._marked[record]:
                    self._marked[record] = 1
                    _, number, _, stored, _ = self._fields(record)
                    self._next_live[number] += stored

    def add_pack(self, pack: Pack) -> None:
        """Record that this pack, with this size, is in the store."""
        with self._lock:
            self._sizes[self._number(pack.name)] = pack.size

    def needed(self) -> list[Pack]:
        """Return the packs that the attempt's checkpoint refers to, sorted by name."""
        with self._lock:
            return sorted(
                (Pack(self._names[number], self._sizes[number]) for number in self._used),
                key=lambda pack: pack.name,
            )

    def live_bytes(self) -> int:
        """Return the stored bytes of the distinct chunks that the attempt's checkpoint refers to."""
        return sum(self._next_live)

    def commit(self) -> None:
        """Make the attempt's checkpoint the parent."""
        with self._lock:
            self._live = self._next_live
            self._states = [_PARENT if number in self._used else _UNUSED for number in range(len(self._states))]
            self._clear_attempt()
            self._compact_if_worthwhile()

    def abandon(self, *, keep_stored: bool = False) -> None:
        """Discard the attempt. With ``keep_stored``, packs that it has uploaded may still be referred to."""
        with self._lock:
            for record, place in self._undo.items():
                at = record * _RECORD.size + _ID_BYTES
                self._records[at : at + _PLACE.size] = place
            self._states = [
                self._after_abandon(state, keep_stored and size > 0)
                for state, size in zip(self._states, self._sizes, strict=True)
            ]
            self._clear_attempt()
            self._compact_if_worthwhile()

    def _reset(self) -> None:
        self._records = bytearray()
        self._slots = array("I", bytes(4 * _MIN_SLOTS))
        self._count = 0
        self._names = []
        self._sizes = []
        self._states = []
        self._live = []
        self._numbers = {}
        self._clear_attempt()

    def _clear_attempt(self) -> None:
        self._marked = bytearray(self._count)
        self._next_live = [0] * len(self._names)
        self._used = set()
        self._undo = {}
        self._repacking = False

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
            self._sizes.append(0)
            self._states.append(_OWN)
            self._live.append(0)
            self._next_live.append(0)
        return number

    def _add(self, ref: ChunkRef) -> ChunkRef:
        number = self._number(ref.pack)
        place = _PLACE.pack(number, ref.offset, ref.stored, ref.length)
        record = self._lookup(ref.id)
        if record >= 0:
            existing = self._usable_ref(record)
            if existing is not None:
                return existing
            at = record * _RECORD.size + _ID_BYTES
            self._undo.setdefault(record, bytes(self._records[at : at + _PLACE.size]))
            self._records[at : at + _PLACE.size] = place
            self._marked[record] = 0
            return ref
        self._slots[-record - 1] = self._count + 1
        self._records += ref.id + place
        self._marked.append(0)
        self._count += 1
        if self._count * 2 > len(self._slots):
            self._grow()
        return ref

    def _lookup(self, identity: bytes) -> int:
        """Return the record's number, or minus one minus the free slot where it belongs."""
        slots, records = self._slots, self._records
        mask = len(slots) - 1
        slot = int.from_bytes(identity[:8], "little") & mask
        while number := slots[slot]:
            at = (number - 1) * _RECORD.size
            if records[at : at + _ID_BYTES] == identity:
                return number - 1
            slot = (slot + 1) & mask
        return -slot - 1

    def _grow(self) -> None:
        self._slots = array("I", bytes(8 * len(self._slots)))
        for record in range(self._count):
            at = record * _RECORD.size
            self._slots[-self._lookup(bytes(self._records[at : at + _ID_BYTES])) - 1] = record + 1

    def _fields(self, record: int) -> tuple[bytes, int, int, int, int]:
        identity, number, offset, stored, length = _RECORD.unpack_from(self._records, record * _RECORD.size)
        return identity, number, offset, stored, length

    def _ref(self, record: int) -> ChunkRef:
        identity, number, offset, stored, length = self._fields(record)
        return ChunkRef(identity, self._names[number], offset, stored, length)

    def _usable_ref(self, record: int) -> ChunkRef | None:
        ref = self._ref(record)
        return ref if self._is_usable(self._states[self._numbers[ref.pack]]) else None

    @staticmethod
    def _after_abandon(state: int, kept: bool) -> int:
        if state in {_OWN, _LEFTOVER}:
            return _LEFTOVER if kept else _UNUSED
        return _PARENT if state == _TO_REPACK else state

    def _is_usable(self, state: int) -> bool:
        return state in {_PARENT, _OWN, _LEFTOVER} or (state == _TO_REPACK and not self._repacking)

    def _compact_if_worthwhile(self) -> None:
        unused = self._states.count(_UNUSED)
        if unused <= max(_MAX_UNUSED_PACKS, len(self._states) // 2):
            return
        refs = [ref for ref in map(self._ref, range(self._count)) if self._states[self._numbers[ref.pack]] != _UNUSED]
        kept = [
            (self._names[n], self._sizes[n], self._live[n], state)
            for n, state in enumerate(self._states)
            if state != _UNUSED
        ]
        self._reset()
        for name, size, live, state in kept:
            number = self._number(name)
            self._sizes[number], self._live[number], self._states[number] = size, live, state
        for ref in refs:
            self._add(ref)
        self._clear_attempt()
