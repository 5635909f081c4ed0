import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.errors import FormatTooNew, IntegrityError, StateTooLarge
from savepoint.repository.format import canonical
from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.manifest import (
    ComponentRecord,
    Execution,
    Manifest,
    Pack,
    Parent,
    Sizes,
    component_digest,
    manifest_name,
    open_manifest,
    seal_manifest,
)

from tests.fakes.repository_fixture import TIME, attempt

KEY = AgentKey(bytes(32))
PACK = "1-" + "a" * 32
REF = ChunkRef(b"\x11" * 32, PACK, 8, 100, 90)
NONCE = bytes(12)

MANIFEST = Manifest(
    namespace="default",
    agent="coder",
    attempt=attempt(1),
    epoch=1,
    created=TIME,
    consistency="Application",
    components=(ComponentRecord("files", "Files", "tree", component_digest([REF]), 0, (REF,)),),
    packs=(Pack(PACK, 108),),
    size=Sizes(0, 100, 108),
    parent=Parent(3, "cd" * 32),
    schema_version="2",
    config_hash="ef" * 32,
    dependencies={"numpy": "2.0"},
    architecture="amd64",
    execution=Execution("step", ("one",), ("two",)),
)


def sealed(manifest: Manifest = MANIFEST) -> bytes:
    return seal_manifest(manifest, KEY, NONCE)


def opened(content: bytes, *, agent: str = "coder", key: AgentKey = KEY) -> Manifest:
    return open_manifest(content, key, "default", agent, manifest_name(content))


def forged(change: Any) -> bytes:
    """A manifest sealed with the right key around JSON that ``change`` has edited."""
    plain = bytearray(len(sealed()) - 36)
    content = sealed()
    associated = b"savepoint-manifest-v1:default/coder"
    KEY.manifest_seal().open_into(NONCE, content[20:], associated, memoryview(plain), "x")
    value = json.loads(plain)
    value = change(value) or value
    plain = bytearray(canonical.encode(value))
    target = bytearray(len(plain) + 16)
    KEY.manifest_seal().seal_into(NONCE, plain, associated, memoryview(target))
    return content[:20] + bytes(target)


def test_a_manifest_survives_a_round_trip() -> None:
    assert opened(sealed()) == MANIFEST
    assert MANIFEST.component("files") == MANIFEST.components[0]
    assert MANIFEST.component("other") is None
    assert opened(sealed(replace(MANIFEST, parent=None, execution=Execution(), config_hash=""))).parent is None
    assert opened(forged(lambda value: None)) == MANIFEST


def test_a_manifest_of_another_agent_or_key_is_refused() -> None:
    with pytest.raises(IntegrityError, match="seal is broken"):
        opened(sealed(), agent="other")
    with pytest.raises(IntegrityError, match="seal is broken"):
        opened(sealed(), key=AgentKey(b"\1" * 32))
    with pytest.raises(IntegrityError, match="belongs to default/other"):
        opened(forged(lambda value: value.update(agent="other")))


def test_every_changed_bit_is_found() -> None:
    content = bytearray(sealed())
    for position in range(0, len(content) * 8, 7):
        content[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError):
            opened(bytes(content))
        content[position // 8] ^= 1 << position % 8


def test_a_manifest_under_another_name_is_refused() -> None:
    with pytest.raises(IntegrityError, match="not match its name") as caught:
        open_manifest(sealed(), KEY, "default", "coder", "ab" * 32)
    assert caught.value.object_key == "manifests/" + "ab" * 32


@pytest.mark.parametrize("content", [b"", b"SVPNTMF1", b"x" * 100, b"SVPNTMF1" + bytes(1 << 20)])
def test_bytes_that_are_not_manifests_are_refused(content: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a manifest"):
        opened(content)


def test_a_duplicate_component_is_refused() -> None:
    with pytest.raises(IntegrityError, match="twice"):
        opened(sealed(replace(MANIFEST, components=MANIFEST.components * 2)))


def test_too_many_packs_are_a_state_that_is_too_large() -> None:
    packs = tuple(Pack(f"{number}-" + "a" * 32, 100) for number in range(1, 20_000))
    with pytest.raises(StateTooLarge):
        sealed(replace(MANIFEST, packs=packs))


def set_in(*path: str | int, value: Any) -> Any:
    def change(root: Any) -> None:
        for step in path[:-1]:
            root = root[step]
        root[path[-1]] = value

    return change


WRONG = {
    "unknown field": set_in("alg", value="none"),
    "unknown nested field": set_in("size", "extra", value=1),
    "unknown component field": set_in("components", 0, "alg", value="none"),
    "unknown pack field": set_in("packs", 0, "key", value="x"),
    "unknown parent field": set_in("parent", "x", value=1),
    "unknown execution field": set_in("execution", "x", value=1),
    "consistency": set_in("consistency", value="Perfect"),
    "layout": set_in("components", 0, "layout", value="pickle"),
    "kind": set_in("components", 0, "kind", value="Code"),
    "digest of a component": set_in("components", 0, "digest", value="00" * 32),
    "content digest": set_in("contentDigest", value="00" * 32),
    "size of a component": set_in("components", 0, "size", value=-1),
    "segments": set_in("components", 0, "segments", value={}),
    "too many segments": set_in("components", 0, "segments", value=[0] * 16385),
    "segment beyond its pack": set_in("packs", 0, "size", value=107),
    "segment in no pack": set_in("packs", value=[]),
    "pack twice": set_in("packs", value=[{"name": PACK, "size": 108}] * 2),
    "packs unsorted": set_in("packs", value=[{"name": f"{n}-" + "a" * 32, "size": 108} for n in (2, 1)]),
    "pack too large": set_in("packs", 0, "size", value=(32 << 20) + 1),
    "pack empty": set_in("packs", 0, "size", value=8),
    "pack with a path": set_in("packs", 0, "name", value="../../other"),
    "epoch": set_in("epoch", value=0),
    "time": set_in("created", value="yesterday"),
    "dependencies": set_in("dependencies", value={"a": 1}),
    "configuration hash": set_in("configHash", value="XY"),
    "parent": set_in("parent", value={"sequence": 0, "manifest": "cd" * 32}),
    "step": set_in("execution", "step", value=1),
    "format": set_in("format", value=0),
    "no object": lambda value: [1],
    "component name": set_in("components", 0, "name", value="x" * 256),
}


@pytest.mark.parametrize("what", WRONG)
def test_sealed_but_invalid_content_is_refused(what: str) -> None:
    content = forged(WRONG[what])
    with pytest.raises(IntegrityError) as caught:
        opened(content)
    assert caught.value.object_key.startswith("manifests/")


FIELDS = (
    "agent namespace attempt epoch created consistency parent schemaVersion configHash dependencies architecture "
    "components packs execution size contentDigest format"
)


@pytest.mark.parametrize("field", FIELDS.split())
def test_a_manifest_without_one_of_its_fields_is_refused(field: str) -> None:
    with pytest.raises(IntegrityError, match=field):
        opened(forged(lambda value: value.pop(field) and None))


def test_a_newer_format_is_refused_as_too_new() -> None:
    with pytest.raises(FormatTooNew):
        opened(forged(lambda value: value.update(format=2, newField=1)))


def test_the_digest_depends_on_content_and_not_on_time() -> None:
    later = replace(MANIFEST, attempt=attempt(2), epoch=2, created="2027-01-01T00:00:00.000000Z")
    assert later.content_digest == MANIFEST.content_digest
    assert replace(MANIFEST, components=()).content_digest != MANIFEST.content_digest


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        opened(b"SVPNTMF1" + content)
        raise AssertionError("bytes that were never sealed were opened")
