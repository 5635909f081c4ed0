"""Which chunks the parent checkpoint has, and where: what makes an increment small.

Compact, about 60 bytes a chunk, because a state may have millions. Thread-safe. It holds only what the parent's
manifest keeps alive and what the attempt at hand has stored; nothing is ever looked for in the store.
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
_GONE_PACKS = 256

_GONE, _PARENT, _OWN, _RETIRED, _SPARE = range(5)


@dataclass(frozen=True, slots=True)
class PackUse:
    """How much of a pack the parent still needs."""

    name: str
    size: int
    live: int
    """Stored bytes of its chunks that the parent refers to."""


class ChunkIndex:
    """Chunks by id. An attempt begins, adds and marks; then it is committed or abandoned."""

    _records: bytearray
    _slots: "array[int]"
    _marked: bytearray
    """One byte a record: whether the attempt refers to it."""
    _names: list[str]
    _sizes: list[int]
    _states: list[int]
    _live: list[int]
    """Of the parent, by pack."""
    _next_live: list[int]
    """Of the attempt, by pack."""
    _numbers: dict[str, int]
    _used: set[int]
    """Packs that the attempt refers to."""
    _undo: dict[int, bytes]
    """Places of the parent that the attempt has overwritten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def __len__(self) -> int:
        """Chunks known, dead ones included."""
        return self._count

    def uses(self) -> list[PackUse]:
        """The parent's packs."""
        with self._lock:
            return [
                PackUse(self._names[number], self._sizes[number], self._live[number])
                for number, state in enumerate(self._states)
                if state in {_PARENT, _RETIRED}
            ]

    def begin(self, retired: Iterable[str] = ()) -> None:
        """Start an attempt. Chunks of ``retired`` packs count as unknown once the attempt stores something new."""
        with self._lock:
            self._begin_idle()
            for name in retired:
                self._states[self._numbers[name]] = _RETIRED

    def retire_now(self) -> None:
        """Let the retired packs count as unknown from here on."""
        self._retiring = True

    def find(self, identity: bytes) -> ChunkRef | None:
        """Where the chunk is, if it may be referred to."""
        with self._lock:
            record = self._lookup(identity)
            return self._usable(record) if record >= 0 else None

    def usable(self, packs: Iterable[str]) -> bool:
        """Whether chunks in all these packs may be referred to."""
        with self._lock:
            numbers = (self._numbers.get(name) for name in packs)
            return all(number is not None and self._is_usable(self._states[number]) for number in numbers)

    def add(self, ref: ChunkRef) -> ChunkRef:
        """Remember a chunk that the attempt stored; if another thread was first, its reference is the answer."""
        with self._lock:
            self._retiring = True
            return self._add(ref)

    def mark(self, ref: ChunkRef) -> None:
        """The attempt's checkpoint refers to this chunk."""
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
        """The attempt's checkpoint refers, through segments, to chunks with these ids in these packs."""
        with self._lock:
            self._used.update(self._numbers[name] for name in packs)
            for identity in ids:
                record = self._lookup(identity)
                if record >= 0 and not self._marked[record]:
                    self._marked[record] = 1
                    _, number, _, stored, _ = self._fields(record)
                    self._next_live[number] += stored

    def wrote(self, pack: Pack) -> None:
        """The attempt's pack is in the store, with this size."""
        with self._lock:
            self._sizes[self._number(pack.name)] = pack.size

    def needed(self) -> list[Pack]:
        """The packs that the attempt's checkpoint refers to, sorted by name."""
        with self._lock:
            return sorted(
                (Pack(self._names[number], self._sizes[number]) for number in self._used),
                key=lambda pack: pack.name,
            )

    def live_bytes(self) -> int:
        """Stored bytes of the distinct chunks that the attempt's checkpoint refers to."""
        return sum(self._next_live)

    def commit(self) -> None:
        """The attempt's checkpoint is the parent now."""
        with self._lock:
            self._live = self._next_live
            self._states = [_PARENT if number in self._used else _GONE for number in range(len(self._states))]
            self._begin_idle()
            self._compact_if_worth_it()

    def abandon(self, *, keep_stored: bool = False) -> None:
        """Forget the attempt; the parent is as before. ``keep_stored``: packs that it has put may be referred to."""
        with self._lock:
            for record, place in self._undo.items():
                at = record * _RECORD.size + _ID_BYTES
                self._records[at : at + _PLACE.size] = place
            self._states = [
                self._after_abandon(state, keep_stored and size > 0)
                for state, size in zip(self._states, self._sizes, strict=True)
            ]
            self._begin_idle()
            self._compact_if_worth_it()

    def _reset(self) -> None:
        self._records = bytearray()
        self._slots = array("I", bytes(4 * _MIN_SLOTS))
        self._count = 0
        self._names = []
        self._sizes = []
        self._states = []
        self._live = []
        self._numbers = {}
        self._begin_idle()

    def _begin_idle(self) -> None:
        self._marked = bytearray(self._count)
        self._next_live = [0] * len(self._names)
        self._used = set()
        self._undo = {}
        self._retiring = False

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
            existing = self._usable(record)
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
        """The record's number, or minus one minus the free slot where it would be."""
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

    def _usable(self, record: int) -> ChunkRef | None:
        ref = self._ref(record)
        return ref if self._is_usable(self._states[self._numbers[ref.pack]]) else None

    @staticmethod
    def _after_abandon(state: int, kept: bool) -> int:
        if state in {_OWN, _SPARE}:
            return _SPARE if kept else _GONE
        return _PARENT if state == _RETIRED else state

    def _is_usable(self, state: int) -> bool:
        return state in {_PARENT, _OWN, _SPARE} or (state == _RETIRED and not self._retiring)

    def _compact_if_worth_it(self) -> None:
        gone = self._states.count(_GONE)
        if gone <= max(_GONE_PACKS, len(self._states) // 2):
            return
        refs = [ref for ref in map(self._ref, range(self._count)) if self._states[self._numbers[ref.pack]] != _GONE]
        kept = [
            (self._names[n], self._sizes[n], self._live[n], state)
            for n, state in enumerate(self._states)
            if state != _GONE
        ]
        self._reset()
        for name, size, live, state in kept:
            number = self._number(name)
            self._sizes[number], self._live[number], self._states[number] = size, live, state
        for ref in refs:
            self._add(ref)
        self._begin_idle()
