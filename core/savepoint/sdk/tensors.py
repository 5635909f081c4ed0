"""Sets of large arrays, staged so that the pause consists of a comparison and a copy of what changed.

Each set has two buffers, with one mapped file per array. A flush takes the buffer that no transaction holds, compares
it with the live arrays block by block and copies the blocks that differ. Arrays are not interpreted: dtype and shape
are stored as metadata beside the bytes.
"""

import mmap
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint.contract.agent_protocol import TENSORS_PREFIX, Component, Entry, Kind
from savepoint.errors import Unavailable
from savepoint.sdk import memory
from savepoint.sdk.errors import NotEncodable, RestoreFailed
from savepoint.sdk.stage import Stage, create_mapped, stage_error


@dataclass(frozen=True)
class Tensor:
    """A restored array. numpy accepts it as an array (``weights[...] = tensor``) if its dtype is numeric or bool.

    Attributes:
        data: The array's bytes in C order, as a read-only one-dimensional buffer; valid while the session is open.
        dtype: The dtype's name, for example ``"float32"``; None if the saved buffer had none.
        shape: The length of each dimension, ``()`` for a scalar; None if the saved buffer had none.
    """

    data: memoryview = field(repr=False)
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """numpy's array interface, version 3. Raises AttributeError if the dtype is not numeric or bool."""
        found = re.fullmatch(r"(bool|int|uint|float|complex)(\d*)", self.dtype or "")
        if found is None or self.shape is None:
            raise AttributeError(f"a tensor of dtype {self.dtype} cannot be read as an array; use its data")
        size = int(found[2] or 8) // 8
        order = "|" if size == 1 else "<" if sys.byteorder == "little" else ">"
        letter = {"bool": "b", "int": "i", "uint": "u", "float": "f", "complex": "c"}[found[1]]
        return {"version": 3, "shape": self.shape, "typestr": f"{order}{letter}{size}", "data": self.data}


Save = Callable[[], Mapping[str, Any]]
Load = Callable[[Mapping[str, Tensor]], object]


@dataclass(frozen=True)
class _Source:
    """The bytes of a live array and its metadata."""

    data: memoryview
    meta: dict[str, Any]


@dataclass
class _File:
    """A staged copy of one array."""

    path: Path
    size: int
    map: mmap.mmap | None  # None for an empty file, which cannot be mapped


@dataclass
class _Buffer:
    """One of the two staged copies of a set."""

    folder: Path
    files: dict[str, _File] = field(default_factory=dict)
    transaction: str | None = None  # holds the buffer until its result
    last_flush: int = 0  # number of the flush that used it last
    files_created: int = 0


class TensorSet:
    """One registered set of arrays. Not thread-safe: the caller holds the agent's lock."""

    def __init__(self, name: str, kind: Kind, save: Save, stage: Stage) -> None:
        self.component = f"{TENSORS_PREFIX}{name}"
        self.kind: Kind = kind
        self._save = save
        self._stage = stage
        self._buffers = (_Buffer(stage.new_folder("tensors")), _Buffer(stage.new_folder("tensors")))
        self._flushes = 0
        self.copied_bytes = 0  # by the last flush

    def fill_buffers(self) -> None:
        """Fill both buffers now, so that no flush has to allocate pages."""
        sources = self._sources()
        for buffer in self._buffers:
            self._update(buffer, sources)

    def flush(self, transaction: str) -> Component:
        """Stage the arrays as they are now. Raises StageFull, NotEncodable, Unavailable."""
        free = [buffer for buffer in self._buffers if buffer.transaction is None]
        if not free:
            raise Unavailable(f"{self.component}: both buffers still wait for the results of earlier checkpoints")
        buffer = min(free, key=lambda item: item.last_flush)
        sources = self._sources()
        self.copied_bytes = self._update(buffer, sources)
        self._flushes += 1
        buffer.transaction, buffer.last_flush = transaction, self._flushes
        entries = tuple(
            Entry(name, "tensor" if source.meta else "bytes", len(source.data), path=self._path(buffer, name),
                  meta=source.meta)
            for name, source in sources.items()
        )  # fmt: skip
        return Component(self.component, self.kind, entries)

    def release(self, transaction: str | None) -> None:
        """Free the buffer of a transaction that has its result; None frees both, because no result will arrive."""
        for buffer in self._buffers:
            if transaction is None or buffer.transaction == transaction:
                buffer.transaction = None

    def _path(self, buffer: _Buffer, name: str) -> str:
        return self._stage.relative(buffer.files[name].path)

    def _update(self, buffer: _Buffer, sources: Mapping[str, _Source]) -> int:
        """Make the buffer hold exactly ``sources``. Returns the number of bytes copied."""
        for name in [item for item in buffer.files if item not in sources]:
            _discard(buffer, name)
        copied = 0
        for name, source in sources.items():
            file = buffer.files.get(name)
            if file is not None and file.size == len(source.data):
                copied += 0 if file.map is None else memory.refresh(file.map, source.data)
                continue
            if file is not None:
                _discard(buffer, name)
            buffer.files_created += 1
            path = buffer.folder / str(buffer.files_created)
            if source.data:
                mapped = create_mapped(path, len(source.data))
                memory.fill(mapped, source.data)
                buffer.files[name] = _File(path, len(source.data), mapped)
            else:
                self._stage.write(path, ())
                buffer.files[name] = _File(path, 0, None)
            copied += len(source.data)
        return copied

    def _sources(self) -> dict[str, _Source]:
        arrays = self._save()
        if not isinstance(arrays, Mapping):
            raise NotEncodable(f"{self.component}: save() must return a mapping of names to buffers")
        return {str(name): _source(value, f"{self.component}.{name}") for name, value in arrays.items()}


def read_tensors(stage_root: Path, component: Component) -> dict[str, Tensor]:
    """Return the arrays of a restored component, mapped read-only. Raises RestoreFailed, Unavailable."""
    return {entry.name: _read_tensor(stage_root, component.name, entry) for entry in component.entries}


def _read_tensor(stage_root: Path, component: str, entry: Entry) -> Tensor:
    if entry.path is None:
        raise RestoreFailed(f"{component}.{entry.name} was restored as text, not as a file")
    path = stage_root / entry.path
    try:
        if path.stat().st_size != entry.size:
            raise RestoreFailed(f"{component}.{entry.name}: the restored file is not {entry.size} bytes long")
        if entry.size == 0:
            data = memoryview(b"")
        else:
            with path.open("rb") as file:
                data = memoryview(mmap.mmap(file.fileno(), entry.size, access=mmap.ACCESS_READ))
    except OSError as error:
        raise stage_error(error, path) from error
    dtype, shape = entry.meta.get("dtype"), entry.meta.get("shape")
    return Tensor(
        data,
        dtype if isinstance(dtype, str) else None,
        tuple(int(length) for length in shape) if isinstance(shape, list | tuple) else None,
    )


def _discard(buffer: _Buffer, name: str) -> None:
    file = buffer.files.pop(name)
    if file.map is not None:
        file.map.close()
    file.path.unlink(missing_ok=True)


def _source(value: Any, where: str) -> _Source:
    """Return the bytes of a buffer, without a copy, and its dtype and shape if it has them."""
    meta: dict[str, Any] = {}
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        meta = {"dtype": str(value.dtype), "shape": [int(length) for length in value.shape]}
    try:
        try:
            view = memoryview(value)
        except (TypeError, ValueError, BufferError):
            if not hasattr(value, "view") or not meta:
                raise
            view = memoryview(value.reshape(-1).view("uint8"))  # a dtype that the buffer protocol does not support
        if not view.c_contiguous:
            raise BufferError("not C-contiguous")
        data = view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError, BufferError) as error:
        raise NotEncodable(
            f"{where} is a {value.__class__.__qualname__} that provides no C-contiguous buffer ({error}): "
            f"return numpy arrays, bytes or bytearrays (a torch tensor: tensor.cpu().contiguous().numpy())",
            where,
        ) from error
    return _Source(data, meta)
