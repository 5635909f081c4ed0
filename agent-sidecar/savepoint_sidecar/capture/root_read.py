"""The inputs that the readers of one root share while its agent may be writing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from savepoint.repository.write.writer import CheckpointWriter

from savepoint_sidecar.capture.change_detector import ChangeDetector
from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.capture.file_table import FileTable
from savepoint_sidecar.capture.open_files import RootFiles


@dataclass(frozen=True)
class RootRead:
    """One pass over the files of a root."""

    writer: CheckpointWriter
    draft: Draft
    """Receives what was read."""
    known: FileTable
    """The files that were captured before."""
    previous: FileTable
    """The files of the checkpoint that was committed last."""
    files: RootFiles
    detector: ChangeDetector
    scratch: Path
    """Folder for copies of databases."""
    clock_ns: Callable[[], int]
    check: Callable[[], None]
    """May raise to end the capture."""
