"""Compresses and expands chunks, one zstd frame each. The only module that uses zstandard.

Frames from the store are untrusted, and so are the sizes they declare. This module handles neither keys nor files.
"""

import zstandard

from savepoint.errors import IntegrityError

LEVEL = 1
PROBE_BYTES = 16 * 1024
MAX_WINDOW_BYTES = 8 << 20

_MAGIC = b"\x28\xb5\x2f\xfd"
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)


class Compressor:
    """Compresses chunks. Not thread-safe; use one per thread."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)

    def compress(self, content: memoryview) -> bytes | None:
        """Return one frame, or None if it saves less than 5 %, judged by the first 16 KiB and then by the whole."""
        if len(content) > PROBE_BYTES:
            probe = self._compressor.compress(content[:PROBE_BYTES])
            if not _is_worthwhile(len(probe), PROBE_BYTES):
                return None
        frame = self._compressor.compress(content)
        return frame if _is_worthwhile(len(frame), len(content)) else None


class Decompressor:
    """Expands chunks. Not thread-safe; use one per thread."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)

    def expand(self, frame: memoryview, target: memoryview, where: str) -> None:
        """Fill ``target`` exactly from one frame without trailing bytes; IntegrityError naming ``where`` otherwise."""
        try:
            whole = frame_bytes(frame) == len(frame)
        except (IndexError, ValueError) as error:
            raise IntegrityError(f"{where}: the compressed chunk is not a zstd frame: {error}", where) from error
        if not whole:
            raise IntegrityError(f"{where}: bytes follow the compressed chunk, or it is truncated", where)
        try:
            with self._decompressor.stream_reader(frame, read_across_frames=False) as stream:
                count = _fill(stream, target)
                more = stream.read(1)
        except (zstandard.ZstdError, MemoryError) as error:
            raise IntegrityError(f"{where}: the compressed chunk cannot be expanded: {error}", where) from error
        if count != len(target) or more:
            raise IntegrityError(f"{where}: the chunk does not expand to {len(target)} bytes", where)


def frame_bytes(frame: memoryview) -> int:
    """Return the length of the first frame, from its block headers alone; raise ValueError if it has none."""
    if frame[:4] != _MAGIC:
        raise ValueError("the magic number is missing")
    descriptor = frame[4]
    if descriptor & 0x08:
        raise ValueError("the reserved bit is set")
    single, checksum = bool(descriptor & 0x20), bool(descriptor & 0x04)
    sizes = _CONTENT_SIZE_BYTES[descriptor >> 6] or int(single)
    position = 5 + (not single) + _DICTIONARY_ID_BYTES[descriptor & 3] + sizes
    last = False
    while not last:
        header = int.from_bytes(frame[position : position + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if position + 3 > len(frame) or kind == 3:
            raise ValueError("a block header is missing or reserved")
        position += 3 + (1 if kind == 1 else size)
    return position + 4 * checksum


def _fill(stream: zstandard.ZstdDecompressionReader, target: memoryview) -> int:
    done = 0
    while done < len(target):
        count = stream.readinto(target[done:])
        if count == 0:
            break
        done += count
    return done


def _is_worthwhile(compressed: int, plain: int) -> bool:
    return compressed * 20 <= plain * 19
