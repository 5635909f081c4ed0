"""Buffers that take memory only as they are used, and return it to the system when they are freed."""

import mmap


def working_memory(size: int) -> memoryview:
    """Return a writable buffer of ``size`` bytes. The system allocates its pages at first use."""
    return memoryview(mmap.mmap(-1, size))
