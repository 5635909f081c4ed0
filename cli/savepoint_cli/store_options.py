"""Options of ``log`` and ``verify``: a store in a folder or a bucket, and which of its agents. Opens nothing."""

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

SCHEME: Final = "s3://"
DEFAULT_ENDPOINT: Final = "https://s3.amazonaws.com"
DEFAULT_REGION: Final = "us-east-1"

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class Bucket:
    """A bucket, or the part of it below a prefix. The credentials are in the environment, never here."""

    name: str
    prefix: str
    """The prefix of the store's spec, without slashes at either end; may be empty."""
    endpoint: str = DEFAULT_ENDPOINT
    region: str = DEFAULT_REGION
    addressing: Literal["path", "virtual"] = "path"
    ca: Path | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}{f'/{self.prefix}' if self.prefix else ''}"


@dataclass(frozen=True)
class StoreOptions:
    """A store, its key, and which of its agents to read."""

    location: Path | Bucket
    master_key: Path | None = None
    """None for the laptop's own key."""
    namespace: str | None = None
    agent: str | None = None


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that reads a store."""
    parser.add_argument("store", type=_location, metavar="DIR|s3://BUCKET[/PREFIX]", help="folder or bucket to read")
    parser.add_argument("--agent", metavar="NAME", help="only agents of this name")
    parser.add_argument("--namespace", metavar="NAME", help="only agents of this namespace")
    parser.add_argument(
        "--master-key", type=Path, metavar="FILE", help="the store's key (default for a folder: this user's own key)"
    )
    s3 = parser.add_argument_group(
        "bucket options",
        "Credentials are read from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.",
    )
    s3.add_argument("--endpoint", metavar="URL", help=f"default: AWS_ENDPOINT_URL, else {DEFAULT_ENDPOINT}")
    s3.add_argument("--region", metavar="NAME", help=f"default: AWS_REGION, else {DEFAULT_REGION}")
    s3.add_argument(
        "--addressing", choices=("path", "virtual"), help="bucket in the URL's path (default) or in its host name"
    )
    s3.add_argument("--ca", type=Path, metavar="FILE", help="CA certificates (PEM) to trust instead of the system's")
    parser.set_defaults(usage_error=parser.error)


def store_options(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> StoreOptions:
    """Combine the parsed arguments with the environment.

    Args:
        options: What ``add_store_arguments`` parsed.
        environment: Supplies the endpoint and the region where no option does.

    Returns:
        The store and the selected agents.

    Raises:
        SystemExit: With status 2, if the arguments contradict each other.
    """
    location: Path | Bucket = options.store
    if isinstance(location, Bucket):
        if options.master_key is None:
            options.usage_error(
                "a store in a bucket needs --master-key FILE; save field master.key of Secret savepoint-master-key "
                "to that file"
            )
        location = Bucket(
            location.name,
            location.prefix,
            options.endpoint or environment.get("AWS_ENDPOINT_URL") or DEFAULT_ENDPOINT,
            options.region or environment.get("AWS_REGION") or DEFAULT_REGION,
            options.addressing or "path",
            options.ca,
        )
    else:
        for name in ("endpoint", "region", "addressing", "ca"):
            if getattr(options, name) is not None:
                options.usage_error(f"--{name} applies only to a store in a bucket ({SCHEME}BUCKET[/PREFIX])")
    return StoreOptions(location, options.master_key, options.namespace, options.agent)


def folder(text: str) -> Path:
    """Return the argument as the path of a folder. ArgumentTypeError if it is empty or a URL."""
    if not text or "://" in text:  # a URL may contain a password, so it is not repeated
        raise argparse.ArgumentTypeError("must be a folder, not empty and not a URL")
    return Path(text)


def _location(text: str) -> Path | Bucket:
    if not text or ("://" in text and not text.startswith(SCHEME)):
        raise argparse.ArgumentTypeError(f"must be a folder or {SCHEME}BUCKET[/PREFIX]")
    if not text.startswith(SCHEME):
        return folder(text)
    name, _, prefix = text.removeprefix(SCHEME).partition("/")
    if _BUCKET_NAME.fullmatch(name) is None:  # it may contain a key, so it is not repeated
        raise argparse.ArgumentTypeError(
            f"no valid bucket name after {SCHEME}: a bucket name has 3 to 63 lower-case letters, digits, '.' and '-'; "
            "credentials are set in the environment, and the endpoint with --endpoint"
        )
    return Bucket(name, prefix.strip("/"))
