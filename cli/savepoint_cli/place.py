"""Which store ``log`` and ``verify`` look into: a folder, or a bucket and how to reach it. It opens nothing."""

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

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class Bucket:
    """A part of a bucket. Who may read it stands in the environment, never here."""

    name: str
    prefix: str
    """As in the store's spec, without slashes at its ends; may be empty."""
    endpoint: str = DEFAULT_ENDPOINT
    region: str = DEFAULT_REGION
    addressing: Literal["path", "virtual"] = "path"
    ca: Path | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}{f'/{self.prefix}' if self.prefix else ''}"


@dataclass(frozen=True)
class Place:
    """A store, its key, and which agents of it are asked for."""

    where: Path | Bucket
    master_key: Path | None = None
    """None: the laptop's own."""
    namespace: str | None = None
    agent: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a command that reads a store takes."""
    parser.add_argument("store", type=_location, metavar="DIR|s3://BUCKET[/PREFIX]", help="folder, or part of a bucket")
    parser.add_argument("--agent", metavar="NAME", help="agents of this name only")
    parser.add_argument("--namespace", metavar="NAME", help="agents of this namespace only")
    parser.add_argument("--master-key", type=Path, metavar="FILE", help="the store's key (a folder: the laptop's own)")
    s3 = parser.add_argument_group(
        "of a bucket", "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN are taken from the environment."
    )
    s3.add_argument("--endpoint", metavar="URL", help=f"AWS_ENDPOINT_URL, else {DEFAULT_ENDPOINT}")
    s3.add_argument("--region", metavar="NAME", help=f"AWS_REGION, else {DEFAULT_REGION}")
    s3.add_argument("--addressing", choices=("path", "virtual"), help="bucket in the URL's path (default), or its host")
    s3.add_argument("--ca", type=Path, metavar="FILE", help="PEM of the CAs to trust instead of the system's")
    parser.set_defaults(usage_error=parser.error)


def place_of(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Place:
    """What was asked for; a usage error (exit 2) where options do not go together."""
    where: Path | Bucket = options.store
    if isinstance(where, Bucket):
        if options.master_key is None:
            options.usage_error("a bucket needs --master-key FILE: the field master.key of Secret savepoint-master-key")
        where = Bucket(
            where.name,
            where.prefix,
            options.endpoint or environment.get("AWS_ENDPOINT_URL") or DEFAULT_ENDPOINT,
            options.region or environment.get("AWS_REGION") or DEFAULT_REGION,
            options.addressing or "path",
            options.ca,
        )
    else:
        for name in ("endpoint", "region", "addressing", "ca"):
            if getattr(options, name) is not None:
                options.usage_error(f"--{name} is for a store in a bucket: {SCHEME}BUCKET[/PREFIX]")
    return Place(where, options.master_key, options.namespace, options.agent)


def _location(text: str) -> Path | Bucket:
    if not text.startswith(SCHEME):
        return Path(text)
    name, _, prefix = text.removeprefix(SCHEME).partition("/")
    if _BUCKET.fullmatch(name) is None:  # what stands there may be a key: it is not said again
        raise argparse.ArgumentTypeError("no bucket after s3://; keys and endpoint are given elsewhere")
    return Bucket(name, prefix.strip("/"))
