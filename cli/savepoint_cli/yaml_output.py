"""Manifests as YAML. Only what prints YAML needs PyYAML."""

from typing import Any

from savepoint.errors import Unavailable


def yaml_text(value: Any) -> str:
    """Return a manifest as YAML.

    Args:
        value: The manifest: dicts, lists, strings, numbers, booleans and None.

    Returns:
        The YAML text, with the keys in the order of the dicts.

    Raises:
        Unavailable: PyYAML is not installed.
    """
    try:
        import yaml  # noqa: PLC0415 - the other commands work without it
    except ImportError as error:
        raise Unavailable("PyYAML is not installed; run: pip install 'savepoint-agents[cli]'") from error
    text: str = yaml.safe_dump(value, sort_keys=False, width=120)
    return text
