"""The master key: a laptop's is one file in the user's configuration folder, made once; none is ever shown."""

import os
import secrets
from pathlib import Path

from savepoint.errors import KeyMismatch, StoreDenied
from savepoint.repository.format.keys import KEY_BYTES, MasterKey


def key_path() -> Path:
    """Where the key is: ``$XDG_CONFIG_HOME/savepoint/master.key``."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".config"
    return base / "savepoint" / "master.key"


def master_key(path: Path, *, create: bool) -> MasterKey:
    """Read the key, as a laptop (hexadecimal) or a cluster's Secret (bytes) keeps it, or make it.

    KeyMismatch if it must be there and is not, or is none.
    """
    try:
        if not path.exists():
            if not create:
                raise KeyMismatch(f"the key of this store is expected at {path}, and is not there")
            _make(path)
        content = path.read_bytes()
        return MasterKey(content if len(content) == KEY_BYTES else bytes.fromhex(content.decode().strip()))
    except ValueError:  # it quotes what it read
        raise KeyMismatch(
            f"{path} holds no key ({KEY_BYTES} bytes, plain or hexadecimal); put back the one this store was made with"
        ) from None
    except OSError as error:
        raise StoreDenied(f"the key at {path} cannot be read or made: {error.strerror}") from error


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_bytes(KEY_BYTES).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return  # another run was first, and its key counts
    finally:
        temporary.unlink(missing_ok=True)
