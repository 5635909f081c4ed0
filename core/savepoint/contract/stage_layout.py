"""Layout of the stage: the folders and files through which an agent's SDK and its sidecar exchange values.

::

    agent/                written by the SDK: the values of a flush, one folder for each
    journal/RUN/          written by the SDK: the journal of one run
    restored/LABEL/N      written by the sidecar: restored values that are too large for the answer to connect
    restored/index.json   written by the sidecar: what the init container restored, and from which checkpoint
    sidecar/              the sidecar's own files

``savepoint run`` keeps the stage of a laptop's agent inside the store, with three files of its own at the top. Names
and paths only: this module opens no file, and no other module contains these names.
"""

from pathlib import Path
from typing import Final

AGENT: Final = "agent"
JOURNAL: Final = "journal"
RESTORED: Final = "restored"
SIDECAR: Final = "sidecar"

SPOOL_NAME: Final = "pool"
"""In ``sidecar/``: content that was copied while the agent was paused."""
DATABASE_COPY_SUFFIX: Final = ".sqlite"
"""Suffix of files in ``sidecar/``: the backup of a database, until it is stored."""


def agent_folder(stage: Path) -> Path:
    """Return the folder that the SDK writes values into."""
    return stage / AGENT


def journals_folder(stage: Path) -> Path:
    """Return the folder that holds a journal for each run."""
    return stage / JOURNAL


def journal_folder(stage: Path, run: int) -> Path:
    """Return the folder of one run's journal."""
    return journals_folder(stage) / str(run)


def restored_folder(stage: Path) -> Path:
    """Return the folder that the sidecar restores values into."""
    return stage / RESTORED


def restored_value(label: str, number: int) -> str:
    """Return the path, relative to the stage, of one restored value. ``label`` names the restore."""
    return f"{RESTORED}/{label}/{number}"


def restored_index(stage: Path) -> Path:
    """Return the file in which the init container lists what it restored."""
    return restored_folder(stage) / "index.json"


def sidecar_folder(stage: Path) -> Path:
    """Return the folder of the sidecar's own files."""
    return stage / SIDECAR


def epoch_file(stage: Path) -> Path:
    """Return the file that holds the epoch last granted to this stage's pod."""
    return sidecar_folder(stage) / "epoch"


def sdk_run_file(stage: Path) -> Path:
    """Return the file that holds the run in which an agent with the SDK last connected."""
    return sidecar_folder(stage) / "sdk"


def marker_copy(stage: Path, root: str) -> Path:
    """Return the file that holds a copy of the marker of a state root, by the root's name."""
    return sidecar_folder(stage) / "markers" / root


def files_restored_file(stage: Path) -> Path:
    """Return the file that exists if files were restored, until a process of the agent has taken over its values."""
    return sidecar_folder(stage) / "files-restored"


def started_file(stage: Path) -> Path:
    """Return the file that exists if the agent may have run since the last restore."""
    return sidecar_folder(stage) / "started"


def private_socket(stage: Path) -> Path:
    """Return the socket on which the sidecar receives commands from its own container's hooks."""
    return sidecar_folder(stage) / "private.sock"


def released_file(stage: Path) -> Path:
    """Return the file in which ``savepoint run`` records, after a clean end, which checkpoint the files match."""
    return sidecar_folder(stage) / "released.json"


def laptop_command(stage: Path) -> Path:
    """Return the file that holds the commands which continue the current run under ``savepoint run``."""
    return stage / "command.json"


def rolled_back_file(stage: Path) -> Path:
    """Return the file that holds the sequence of the latest rollback that ``savepoint run`` has carried out."""
    return sidecar_folder(stage) / "rolled-back"


def laptop_stage(store: Path, agent: str) -> Path:
    """Return the stage of an agent under ``savepoint run``: a folder inside its store."""
    return store / ".stage" / agent


def laptop_lock(stage: Path) -> Path:
    """Return the file that ``savepoint run`` locks for as long as it runs the agent."""
    return stage / "lock"


def laptop_processes(stage: Path) -> Path:
    """Return the file in which ``savepoint run`` records the agent's processes, for the next run."""
    return stage / "processes.json"


def laptop_socket(stage: Path) -> Path:
    """Return the agent's socket under ``savepoint run``, where that path is short enough for a socket."""
    return stage / "agent.sock"
