import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.errors import IntegrityError
from savepoint.repository.format.chunk import ChunkRef, chunk_id, content_digest, ref_of, refs_of
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.format.pack import ChunkOpener, PackWriter

KEY = AgentKey(bytes(32))
NAME = "1-" + "a" * 32
GOOD: list[object] = ["ab" * 32, NAME, 8, 100, 90]


def written(plain: bytes, identity: bytes | None = None, length: int | None = None) -> tuple[ChunkRef, bytearray]:
    """A chunk as a pack holds it; ``plain`` begins with the codec byte."""
    pack = PackWriter(4096)
    pack.begin(NAME, KEY)
    content = plain[1:]
    ref = pack.append(identity or chunk_id(content), memoryview(plain), len(content) if length is None else length)
    return ref, bytearray(pack.view()[ref.offset :])


def opened(ref: ChunkRef, sealed: bytes | bytearray) -> bytes:
    target = bytearray(ref.length)
    ChunkOpener(KEY).open_into(ref, memoryview(sealed), memoryview(target))
    return bytes(target)


def test_chunks_can_be_opened_in_any_order() -> None:
    pack = PackWriter(4096)
    pack.begin(NAME, KEY)
    refs = [pack.append(chunk_id(b"x" * n), memoryview(b"\0" + b"x" * n), n) for n in (1, 10, 100)]
    whole = bytes(pack.view())
    assert whole[:8] == b"SVPNTPK1"
    assert pack.size == len(whole) == 8 + 111 + 3 * 17
    for ref in reversed(refs):
        assert opened(ref, whole[ref.offset : ref.offset + ref.stored]) == b"x" * ref.length


def test_a_pack_buffer_is_reused_and_bounded() -> None:
    pack = PackWriter(64)
    assert not pack.open
    pack.begin(NAME, KEY)
    assert pack.open
    assert pack.fits(40)
    assert not pack.fits(41)
    pack.append(chunk_id(b"x"), memoryview(b"\0x"), 1)
    pack.drop()
    assert not pack.open
    pack.begin(NAME, KEY)
    assert pack.size == 8


def test_every_changed_bit_is_found() -> None:
    ref, sealed = written(b"\0some content")
    for position in range(len(sealed) * 8):
        sealed[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError) as caught:
            opened(ref, sealed)
        assert caught.value.object_key == f"packs/{NAME}"
        sealed[position // 8] ^= 1 << position % 8
    assert opened(ref, sealed) == b"some content"


@pytest.mark.parametrize(
    "change",
    [{"id": bytes(32)}, {"offset": 9}, {"pack": "1-" + "b" * 32}, {"length": 11}, {"length": 13}],
)
def test_a_reference_that_does_not_match_its_chunk_is_refused(change: dict[str, object]) -> None:
    ref, sealed = written(b"\0some content")
    with pytest.raises(IntegrityError):
        opened(ref._replace(**change), sealed)  # type: ignore[arg-type]


def test_sealed_but_invalid_content_is_refused() -> None:
    with pytest.raises(IntegrityError, match="codec"):
        opened(*written(b"\2content"))
    with pytest.raises(IntegrityError, match="not match its id"):
        opened(*written(b"\0content", identity=bytes(32)))
    with pytest.raises(IntegrityError, match="not have 3 bytes"):
        opened(*written(b"\0content", length=3))
    with pytest.raises(IntegrityError, match="not a zstd frame"):
        opened(*written(b"\1content"))


def test_many_packs_are_opened_by_one_opener() -> None:
    opener = ChunkOpener(KEY)
    for number in range(300):
        pack = PackWriter(64)
        pack.begin(f"{number + 1}-" + "0" * 32, KEY)
        ref = pack.append(chunk_id(b"x"), memoryview(b"\0x"), 1)
        target = bytearray(1)
        opener.open_into(ref, memoryview(pack.view()[ref.offset :]), memoryview(target))
        assert target == b"x"


def test_references_survive_a_round_trip() -> None:
    ref = ref_of(GOOD, "x")
    assert ref == ChunkRef(b"\xab" * 32, NAME, 8, 100, 90)
    assert ref.to_wire() == GOOD
    assert refs_of([GOOD, GOOD], "x") == (ref, ref)


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, "AB" * 32), (0, "ab"), (0, 1), (1, "0-" + "a" * 32), (1, "01-" + "a" * 32), (1, "1-" + "A" * 32),
        (1, NAME + "/"),
        (1, "../" + NAME), (1, NAME + "\n"), (1, None), (2, 7), (2, -8), (2, True), (2, "8"), (2, 2**70),
        (2, (32 << 20) - 99),
        (3, 17), (3, (1 << 20) + 18), (3, 0), (4, 0), (4, (1 << 20) + 1), (4, -1), (4, 1.5),
    ],
)  # fmt: skip
def test_references_out_of_bounds_are_refused(position: int, value: object) -> None:
    wrong = [*GOOD[:position], value, *GOOD[position + 1 :]]
    with pytest.raises(IntegrityError):
        ref_of(wrong, "x")


@pytest.mark.parametrize("value", [None, [], GOOD[:4], [*GOOD, 1], {"id": 1}, "text"])
def test_values_that_are_not_references_are_refused(value: object) -> None:
    with pytest.raises(IntegrityError):
        ref_of(value, "x")


def test_references_that_are_not_a_list_are_refused() -> None:
    with pytest.raises(IntegrityError):
        refs_of({}, "x")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=10,
)


@given(JUNK)
def test_arbitrary_values_are_references_or_refused(value: object) -> None:
    with contextlib.suppress(IntegrityError):
        ref_of(value, "x")


def test_the_content_digest_does_not_depend_on_places() -> None:
    ref = ref_of(GOOD, "x")
    moved = ref._replace(pack="2-" + "b" * 32, offset=500)
    assert content_digest([ref]) == content_digest([moved])
    assert content_digest([ref]) != content_digest([ref, ref])
    assert content_digest([ref]) != content_digest([ref._replace(length=91)])
