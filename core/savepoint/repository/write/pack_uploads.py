"""A few pack buffers, and the threads that put full ones while others are filled.

It knows when a buffer is free and when a pack is in the store; what goes into a pack is for ``lane``.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from savepoint.errors import DeadlineExceeded
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Pack
from savepoint.repository.format.pack import PackWriter
from savepoint.repository.repository import pack_key
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.storage.store import BlobWriter

ABORTED = "the checkpoint was aborted while its content was stored"


class PackUploads:
    """Hands out begun packs and takes full ones. Thread-safe."""

    def __init__(
        self, writer: BlobWriter, key: AgentKey, index: ChunkIndex, *, new_name: Callable[[], str], buffers: int
    ) -> None:
        self._writer, self._key, self._index, self._new_name = writer, key, index, new_name
        self._free = [PackWriter() for _ in range(buffers)]
        self._changed = threading.Condition()
        self._putting = 0
        self._failure: BaseException | None = None
        self._stopped = False
        self._pool = ThreadPoolExecutor(buffers, thread_name_prefix="savepoint-put")
        self.written: list[Pack] = []
        """The packs that are in the store."""

    def take(self) -> PackWriter:
        """A begun pack, as soon as a buffer is free. Raises what a put has failed with."""
        with self._changed:
            while not self._free or self._failure or self._stopped:
                self._raise_failure()
                if self._stopped:
                    raise DeadlineExceeded(ABORTED)
                self._changed.wait()
            pack = self._free.pop()
        pack.begin(self._new_name(), self._key)
        return pack

    def put(self, pack: PackWriter) -> None:
        """Put a full pack, in another thread; its buffer is free again afterwards."""
        with self._changed:
            self._putting += 1
        self._pool.submit(self._put, pack)

    def drop(self, pack: PackWriter) -> None:
        """Give a pack's buffer back without putting it."""
        pack.drop()
        with self._changed:
            self._free.append(pack)
            self._changed.notify()

    def wait(self) -> tuple[Pack, ...]:
        """Wait until everything is put: all packs, by name. Raises what a put has failed with."""
        with self._changed:
            while self._putting:
                self._changed.wait()
            self._raise_failure()
            return tuple(sorted(self.written, key=lambda pack: pack.name))

    def close(self) -> None:
        """Wait for puts under way, and let the buffers go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._pool.shutdown(wait=True)
        self._free.clear()

    def _put(self, pack: PackWriter) -> None:
        described = Pack(pack.name, pack.size)
        try:
            self._writer.put_new(pack_key(described.name), pack.view())
            self._index.wrote(described)
            self.written.append(described)
        except BaseException as error:  # noqa: BLE001 - it is raised where the pack's chunks are waited for
            self._failure = self._failure or error
        finally:
            pack.drop()
            with self._changed:
                self._putting -= 1
                self._free.append(pack)
                self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
