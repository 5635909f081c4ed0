"""A second implementation of reading, written from docs/repository-format.md alone.

It shares no code with the product, so the two agree only if the page is right. It checks no more than it must.
"""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


class SecondReader:
    """A reader of one agent's repository in a folder."""

    def __init__(self, store: Path, namespace: str, agent: str, master: bytes) -> None:
        self.identity = json.loads((store / "savepoint.json").read_bytes())
        assert self.identity["keyCheck"] == hmac.new(master, b"savepoint-key-check-v1", "sha256").hexdigest()
        self.name = f"{namespace}/{agent}"
        self.folder = store / namespace / agent
        salt = bytes.fromhex(json.loads((self.folder / "repository.json").read_bytes())["salt"])
        self.key = hkdf(master, salt, f"savepoint-agent-v1:{self.name}".encode())

    def records(self) -> list[dict[str, Any]]:
        """Return all commit records, with each link checked."""
        found: list[dict[str, Any]] = []
        previous = None
        while (path := self.folder / "commits" / f"{len(found) + 1:020}").exists():
            raw = path.read_bytes()
            record = json.loads(raw)
            assert record["previous"] == previous
            assert record["sequence"] == len(found) + 1
            previous = hashlib.sha256(raw).hexdigest()
            found.append(record)
        return found

    def manifest(self, name: str) -> dict[str, Any]:
        """Return a decrypted manifest."""
        raw = (self.folder / "manifests" / name).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == name
        assert raw[:8] == b"SVPNTMF1"
        cipher = AESGCM(hkdf(self.key, b"", b"savepoint-manifest-v1"))
        plain = cipher.decrypt(raw[8:20], raw[20:], f"savepoint-manifest-v1:{self.name}".encode())
        manifest: dict[str, Any] = json.loads(plain)
        rows = sorted([c["name"], c["kind"], c["layout"], c["digest"]] for c in manifest["components"])
        text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
        assert hashlib.sha256(text).hexdigest() == manifest["contentDigest"]
        return manifest

    def chunk(self, ref: list[Any]) -> bytes:
        """Return the content of a chunk."""
        identity, pack, offset, stored, length = ref
        raw = (self.folder / "packs" / pack).read_bytes()
        assert raw[:8] == b"SVPNTPK1"
        cipher = AESGCM(hkdf(self.key, b"", b"savepoint-pack-v1:" + pack.encode()))
        plain = cipher.decrypt(offset.to_bytes(12, "big"), raw[offset : offset + stored], bytes.fromhex(identity))
        payload = plain[1:] if plain[0] == 0 else zstandard.ZstdDecompressor().decompress(plain[1:], length)
        assert len(payload) == length
        assert hashlib.sha256(payload).hexdigest() == identity
        return payload

    def lines(self, segments: list[Any]) -> list[Any]:
        """Return the values of the segments' lines."""
        return [json.loads(line) for ref in segments for line in self.chunk(ref).splitlines()]

    def content(self, entry: dict[str, Any]) -> bytes:
        """Return the content of a file or value."""
        refs = entry["chunks"] or [ref for line in self.lines(entry.get("more", [])) for ref in line]
        found = b"".join(map(self.chunk, refs))
        assert len(found) == entry["size"]
        return found

    def component(self, component: dict[str, Any]) -> Any:
        """Return a blob's bytes, or the entries of another layout, each paired with its content or None."""
        digest = hashlib.sha256(b"".join(bytes.fromhex(ref[0]) for ref in component["segments"])).hexdigest()
        assert digest == component["digest"]
        lines = self.lines(component["segments"])
        if component["layout"] == "blob":
            return b"".join(self.chunk(ref) for line in lines for ref in line)
        return [(line, self.content(line)) if "size" in line else (line, None) for line in lines]
