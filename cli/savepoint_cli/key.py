"""The master key. A laptop's is one file in the user's configuration folder, created once and never printed."""

import os
import secrets
from pathlib import Path

from savepoint.errors import KeyMismatch, StoreDenied
from savepoint.repository.format.keys import KEY_BYTES, MasterKey


def key_path() -> Path:
    """Return the path of the laptop's key: ``$XDG_CONFIG_HOME/savepoint/master.key``."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".config"
    return base / "savepoint" / "master.key"


def master_key(path: Path, *, create: bool) -> MasterKey:
    """Read the key, in hexadecimal as a laptop stores it or raw as a cluster's Secret does.

    Args:
        path: The key file.
        create: Generate the key if the file does not exist.

    Returns:
        The key.

    Raises:
        KeyMismatch: The file is not a key, or does not exist and ``create`` is false.
        StoreDenied: The file cannot be read or created.
    """
    try:
        if not path.exists():
            if not create:
                raise KeyMismatch(
                    f"cannot find the store's master key: expected at {path}; restore that file, or pass --master-key "
                    "FILE"
                )
            _create(path)
        content = path.read_bytes()
        return MasterKey(content if len(content) == KEY_BYTES else bytes.fromhex(content.decode().strip()))
    except ValueError:  # not chained: its message quotes what the file contains
        raise KeyMismatch(
            f"{path} is not a master key ({KEY_BYTES} bytes, raw or in hexadecimal); restore the key that this store "
            "was created with"
        ) from None
    except OSError as error:
        raise StoreDenied(f"cannot read or create master key {path}: {error.strerror}") from error


def _create(path: Path) -> None:
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
            return  # a concurrent run created the key first; that one is used
    finally:
        temporary.unlink(missing_ok=True)
