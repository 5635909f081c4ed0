import contextlib
import resource

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from savepoint.errors import IntegrityError
from savepoint.repository.format.compress import Compressor, Decompressor, frame_bytes

from tests.fakes.repository_fixture import content

MIB = 1 << 20


def expand(frame: bytes, length: int) -> bytes:
    target = bytearray(length)
    Decompressor().expand(memoryview(frame), memoryview(target), "packs/x")
    return bytes(target)


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 50))
def test_compressed_content_survives_a_round_trip(piece: bytes, times: int) -> None:
    plain = piece * times
    frame = Compressor().compress(memoryview(plain))
    if frame is not None:
        assert len(frame) * 20 <= len(plain) * 19
        assert expand(frame, len(plain)) == plain


def test_incompressible_content_is_not_compressed() -> None:
    noise = content("noise", MIB)
    assert Compressor().compress(memoryview(noise)) is None
    assert Compressor().compress(memoryview(noise[:1000])) is None
    assert Compressor().compress(memoryview(noise[:20_000] + bytes(MIB))) is None, "only the first 16 KiB are tried"
    assert Compressor().compress(memoryview(bytes(16384) + noise)) is None, "then the whole must shrink too"


def test_another_writers_frames_are_read() -> None:
    plain = bytes(range(256)) * 2000
    for options in (
        zstandard.ZstdCompressionParameters.from_level(19, write_checksum=True),
        zstandard.ZstdCompressionParameters.from_level(3, write_content_size=False),
    ):
        assert expand(zstandard.ZstdCompressor(compression_params=options).compress(plain), len(plain)) == plain
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    assert expand(stream.compress(plain) + stream.flush(), len(plain)) == plain


def refused(frame: bytes, length: int) -> None:
    with pytest.raises(IntegrityError) as caught:
        expand(frame, length)
    assert caught.value.object_key == "packs/x"


def test_a_frame_that_yields_more_or_less_than_declared_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1000))
    refused(frame, 999)
    refused(frame, 1001)


def test_bytes_after_a_frame_are_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1000))
    refused(frame + b"x", 1000)
    refused(frame + frame, 1000)
    refused(frame + frame, 2000)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    refused(frame + skippable, 1000)
    refused(skippable + frame, 1000)


def test_a_bomb_is_stopped_at_the_declared_size() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(256 * MIB))
    assert len(bomb) < 64 << 10
    grown_by_making_it = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bomb, MIB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - max(before, grown_by_making_it) < 32 << 10


def test_a_false_content_size_is_refused() -> None:
    honest = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(bytes(600) + content("a", 400))
    assert honest[4] & 0x20, "a single segment states its size in the header"
    lying = bytearray(honest)
    lying[5:7] = (2000 - 256).to_bytes(2, "little")
    refused(bytes(lying), 1000)
    refused(bytes(lying), 2000)


def test_a_huge_window_is_refused() -> None:
    options = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()
    refused(stream.compress(bytes(1000)) + stream.flush(), 1000)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x28\xb5\x2f", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x08", b"\x28\xb5\x2f\xfd\x20\x01",
     b"\x28\xb5\x2f\xfd\x20\x01\x07\x00\x00", b"\x28\xb5\x2f\xfd\x20\x01\x01\xff\xff", b"plain"],
)  # fmt: skip
def test_bytes_that_are_not_frames_are_refused(frame: bytes) -> None:
    refused(frame, 1)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_measured(tail: bytes) -> None:
    with contextlib.suppress(ValueError, IndexError):
        assert frame_bytes(memoryview(b"\x28\xb5\x2f\xfd" + tail)) > 0
    with contextlib.suppress(IntegrityError):
        expand(b"\x28\xb5\x2f\xfd" + tail, 100)


def test_a_truncated_frame_is_refused() -> None:
    frame = zstandard.ZstdCompressor(level=1).compress(b"some text " * 300)
    for end in range(len(frame)):
        refused(frame[:end], 3000)
