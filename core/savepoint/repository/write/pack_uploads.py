"""A few pack buffers, and the threads that upload full packs while others are filled.

It knows when a buffer is free and when a pack is in the store; ``chunk_worker`` fills the packs.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from savepoint.errors import DeadlineExceeded
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import Pack
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.format.pack import PackWriter
from savepoint.repository.write.chunk_index import ChunkIndex
from savepoint.storage.store import BlobWriter

ABORTED = "the checkpoint was aborted while its content was stored"


class PackUploads:
    """Supplies empty packs and uploads full ones. Thread-safe."""

    def __init__(
        self, writer: BlobWriter, key: AgentKey, index: ChunkIndex, *, new_name: Callable[[], str], buffers: int
    ) -> None:
        self._writer, self._key, self._index, self._new_name = writer, key, index, new_name
        self._free = [PackWriter() for _ in range(buffers)]
        self._changed = threading.Condition()
        self._uploading = 0
        self._failure: BaseException | None = None
        self._stopped = False
        self._threads = ThreadPoolExecutor(buffers, thread_name_prefix="savepoint-upload")
        self.uploaded: list[Pack] = []
        """The packs that are in the store."""

    def take(self) -> PackWriter:
        """Return an empty pack, waiting for a free buffer. Raises the error of a failed upload."""
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
        """Upload a pack in another thread; its buffer is free again afterwards."""
        with self._changed:
            self._uploading += 1
        self._threads.submit(self._upload, pack)

    def drop(self, pack: PackWriter) -> None:
        """Free a pack's buffer without uploading it."""
        pack.drop()
        with self._changed:
            self._free.append(pack)
            self._changed.notify()

    def wait(self) -> tuple[Pack, ...]:
        """Wait for all uploads and return all packs, sorted by name. Raises the error of a failed upload."""
        with self._changed:
            while self._uploading:
                self._changed.wait()
            self._raise_failure()
            return tuple(sorted(self.uploaded, key=lambda pack: pack.name))

    def close(self) -> None:
        """Wait for uploads in progress, and free the buffers.

        The owner of the store interrupts uploads that are not needed any more; otherwise one can take minutes to fail.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._threads.shutdown(wait=True)
        self._free.clear()

    def _upload(self, pack: PackWriter) -> None:
        stored = Pack(pack.name, pack.size)
        try:
            if self._stopped:
                raise DeadlineExceeded(ABORTED)
            self._writer.put_new(pack_key(stored.name), pack.view())
            self._index.add_pack(stored)
            self.uploaded.append(stored)
        except BaseException as error:  # noqa: BLE001 - raised to the threads that wait for a buffer or for the end
            self._failure = self._failure or error
        finally:
            pack.drop()
            with self._changed:
                self._uploading -= 1
                self._free.append(pack)
                self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
