"""Compare and copy memory in blocks with the C library's memcmp and memmove, which run without the GIL.

The functions know addresses and sizes only; the caller decides which buffer may be read or written when.
"""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

BLOCK_BYTES: Final = 64 << 10
_COPY_BYTES: Final = 16 << 20  # copied in one call

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


class _Buffer(ctypes.Structure):
    """CPython's ``Py_buffer``; ctypes' own ``from_buffer`` refuses read-only memory."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None


@contextmanager
def address_of(buffer: Any) -> Iterator[int]:
    """Yield the address of a C-contiguous buffer's first byte; it is valid inside the block."""
    view = _Buffer()
    _get_buffer(buffer, ctypes.byref(view), 0)  # PyBUF_SIMPLE; raises BufferError itself
    try:
        yield view.buf or 0
    finally:
        _release_buffer(ctypes.byref(view))


def refresh(target: mmap.mmap, source: memoryview) -> int:
    """Make ``target`` equal to ``source``, writing only blocks that differ. Returns the number of bytes copied."""
    size = len(source)
    copied = 0
    with address_of(target) as destination, address_of(source) as origin:
        for offset in range(0, size, BLOCK_BYTES):
            length = min(BLOCK_BYTES, size - offset)
            if _memcmp(destination + offset, origin + offset, length):
                ctypes.memmove(destination + offset, origin + offset, length)
                copied += length
    return copied


def fill(target: mmap.mmap, source: memoryview) -> None:
    """Copy all of ``source``; other threads run in the meantime."""
    with address_of(target) as destination, address_of(source) as origin:
        for offset in range(0, len(source), _COPY_BYTES):
            ctypes.memmove(destination + offset, origin + offset, min(_COPY_BYTES, len(source) - offset))
