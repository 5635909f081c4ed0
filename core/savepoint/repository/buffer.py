"""Working memory that costs nothing until it is touched, and is given back to the system when it is let go."""

import mmap


def working_memory(size: int) -> memoryview:
    """A writable view of so many bytes: pages come as they are used, so a small checkpoint needs few of them."""
    return memoryview(mmap.mmap(-1, size))
