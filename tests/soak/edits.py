"""Random edits of a tree, as agents, editors, version control and package managers make them."""

import ctypes
import mmap
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

SIZES: Final = (0, 1, 100, 4095, 4096, 4097, 20_000, 70_000)
LARGE: Final = (300_000, 1_200_000, 2_500_000)
NAMES: Final[tuple[str, ...]] = (
    *"abcdefgh",
    "ü",
    "x.db",
    "a b",
    "log",
    ".git",
    "-wal",
    "a.db-wal",
    "a.db-journal",
    "*",
    "[z-a]",
    "CON",
)
_EXCHANGE: Final = 2
_FDCWD: Final = -100


class Editor:
    """Edits the tree below a folder. Everything it does follows from the random numbers."""

    def __init__(self, top: Path, numbers: random.Random) -> None:
        self.top, self.numbers = top, numbers
        self.mapped: list[mmap.mmap] = []
        """Mappings that stay open over checkpoints, as those of an index or a database."""
        self.done: list[str] = []
        self.untouched = {".savepoint"}
        """Names in the top folder that others write."""

    def close(self) -> None:
        """Close what is mapped."""
        for each in self.mapped:
            each.close()

    def create_tree(self) -> None:
        """Create the first files."""
        for _ in range(self.numbers.randrange(3, 25)):
            self.create()

    def edit(self) -> None:
        """Make one random edit. An edit that the tree does not allow now does nothing."""
        choice = self.numbers.choice(EDITS)
        self.done.append(choice.__name__)
        try:
            choice(self)
        except (OSError, ValueError, IndexError) as error:
            self.done[-1] += f" ({type(error).__name__})"

    def files(self) -> list[Path]:
        """Return all regular files, in order."""
        return sorted(path for path in self._paths() if path.is_file() and not path.is_symlink())

    def folders(self) -> list[Path]:
        """Return all folders, in order; the top is the first."""
        return [self.top, *sorted(path for path in self._paths() if path.is_dir() and not path.is_symlink())]

    def _paths(self) -> list[Path]:
        tops = [path for path in self.top.iterdir() if path.name not in self.untouched]
        inner = [path for top in tops if top.is_dir() and not top.is_symlink() for path in top.rglob("*")]
        return tops + inner

    def _file(self) -> Path:
        files = self.files()
        if not files:
            raise FileNotFoundError
        return self.numbers.choice(files)

    def _new(self) -> Path:
        return self.numbers.choice(self.folders()) / self.numbers.choice(NAMES)

    def _bytes(self) -> bytes:
        size = self.numbers.choice(SIZES if self.numbers.random() < 0.93 else LARGE)
        if self.numbers.random() < 0.1:
            return bytes(size)
        return self.numbers.randbytes(min(size, 4096)) * (size // 4096) + self.numbers.randbytes(size % 4096)

    def create(self) -> None:
        """Create a file, or replace one."""
        path = self._new()
        path.write_bytes(self._bytes())

    def replace(self) -> None:
        """Replace a file atomically, as editors do."""
        path = self._file()
        other = path.with_name("temporary")
        other.write_bytes(self._bytes())
        other.replace(path)

    def overwrite(self) -> None:
        """Write into a file, of which nothing else changes."""
        with self._file().open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(self.numbers.randrange(size))
            file.write(self.numbers.randbytes(min(size - file.tell(), self.numbers.choice((1, 10, 5000)))))

    def overwrite_with_equal_stamps(self) -> None:
        """Write into a file, then set its time back to what it was."""
        path = self._file()
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(self.numbers.randrange(status.st_size))
            file.write(self.numbers.randbytes(1))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def map(self) -> None:
        """Map a file, write to it, and keep it mapped."""
        with self._file().open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        self.mapped.append(mapped)
        self._write_mapped(mapped)

    def write_mapped(self) -> None:
        """Write to a file that was mapped before; often it has been captured since."""
        if self.mapped:
            self._write_mapped(self.numbers.choice(self.mapped))

    def _write_mapped(self, mapped: mmap.mmap) -> None:
        for _ in range(self.numbers.randrange(1, 4)):
            mapped[self.numbers.randrange(len(mapped))] = self.numbers.randrange(256)
        if self.numbers.random() < 0.3:
            mapped.flush()

    def truncate(self) -> None:
        """Make a file shorter, or longer by a hole."""
        path = self._file()
        os.truncate(path, self.numbers.randrange(path.stat().st_size * 2 + 1))

    def append(self) -> None:
        """Append to a file."""
        with self._file().open("ab") as file:
            file.write(self.numbers.randbytes(self.numbers.choice((1, 100, 5000))))

    def rename(self) -> None:
        """Rename a file, over another one or into another folder."""
        self._file().rename(self._new())

    def rename_folder(self) -> None:
        """Rename a folder with everything in it."""
        self.numbers.choice(self.folders()[1:] or [self._new()]).rename(self._new())

    def exchange(self) -> None:
        """Exchange two files or folders, which leaves their own stamps as they are."""
        first, second = self.numbers.sample([*self.files(), *self.folders()[1:]], 2)
        names = (_FDCWD, os.fsencode(first), _FDCWD, os.fsencode(second))
        if ctypes.CDLL(None, use_errno=True).renameat2(*names, _EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def swap_by_names(self) -> None:
        """Exchange two files of equal size and time by three renames."""
        first, second = self._file(), self._file()
        second.write_bytes(self.numbers.randbytes(first.stat().st_size))
        os.utime(second, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
        third = first.with_name("third")
        first.rename(third)
        second.rename(first)
        third.rename(second)

    def chmod(self) -> None:
        """Change the mode of a file or folder."""
        target = self.numbers.choice([*self.files(), *self.folders()[1:]])
        target.chmod(self.numbers.choice((0o600, 0o644, 0o755, 0o500, 0o777, 0o400)))

    def touch(self) -> None:
        """Set a time, sometimes an odd one."""
        when = self.numbers.choice((0, 1, -5, 10**18, 1_900_000_000_000_000_001, self.numbers.randrange(2**61)))
        os.utime(self._file(), ns=(when, when))

    def link(self) -> None:
        """Give a file a second name."""
        os.link(self._file(), self._new())

    def symlink(self) -> None:
        """Create a symbolic link, also to nothing or to outside."""
        self._new().symlink_to(self.numbers.choice(("a", "../b", "/etc/hostname", ".", "x" * 200)))

    def make_folder(self) -> None:
        """Create a folder."""
        self._new().mkdir()

    def sparse(self) -> None:
        """Write a file with holes."""
        with self._new().open("wb") as file:
            for _ in range(self.numbers.randrange(4)):
                file.seek(self.numbers.randrange(3_000_000))
                file.write(self.numbers.randbytes(self.numbers.choice((1, 5000))))
            file.truncate(max(file.tell(), self.numbers.randrange(3_000_000)))

    def punch(self) -> None:
        """Replace a part of a file by a hole: fallocate changes neither the size nor what is before and after."""
        with self._file().open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            at = self.numbers.randrange(size)
            fallocate = ctypes.CDLL(None, use_errno=True).fallocate
            fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            fallocate(file.fileno(), 3, at, max(1, size - at))

    def remove(self) -> None:
        """Remove a file."""
        self._file().unlink()

    def remove_folder(self) -> None:
        """Remove a folder with everything in it."""
        shutil.rmtree(self.numbers.choice(self.folders()[1:] or [self._new()]))

    def turn_into_folder(self) -> None:
        """Put a folder where a file was."""
        path = self._file()
        path.unlink()
        path.mkdir()
        (path / "inner").write_bytes(self._bytes())


EDITS: Final[tuple[Callable[[Editor], None], ...]] = (
    Editor.create, Editor.create, Editor.replace, Editor.overwrite, Editor.overwrite,
    Editor.overwrite_with_equal_stamps, Editor.overwrite_with_equal_stamps, Editor.map, Editor.map,
    Editor.write_mapped, Editor.write_mapped, Editor.write_mapped, Editor.write_mapped, Editor.truncate, Editor.append,
    Editor.rename, Editor.rename_folder, Editor.exchange, Editor.exchange, Editor.swap_by_names, Editor.chmod,
    Editor.touch, Editor.link, Editor.symlink, Editor.make_folder, Editor.sparse, Editor.punch, Editor.remove,
    Editor.remove_folder, Editor.turn_into_folder,
)  # fmt: skip
