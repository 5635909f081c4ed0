import pytest
from savepoint.errors import IntegrityError
from savepoint.repository.format.keys import AgentKey, MasterKey, derive
from savepoint.repository.format.seal import Seal


def test_derived_keys_equal_the_examples_in_rfc_5869() -> None:
    """Check test cases 1 and 3 of the RFC's appendix, the first 32 bytes of each."""
    key = bytes.fromhex("0b" * 22)
    found = derive(key, salt=bytes.fromhex("000102030405060708090a0b0c"), info=bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"))
    assert found.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    assert derive(key, salt=b"", info=b"").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_the_text_of_a_key_does_not_contain_its_bytes() -> None:
    master = MasterKey(b"\xab" * 32)
    agent = master.agent_key(b"salt", "default", "coder")
    for text in (repr(master), str(master), repr(agent), f"{agent}"):
        assert "ab" * 4 not in text.lower()
        assert "\\x" not in text
    assert not hasattr(master, "__dict__")


def test_every_agent_pack_and_store_has_its_own_key() -> None:
    master = MasterKey(bytes(32))
    one, two = master.agent_key(b"1" * 32, "default", "coder"), master.agent_key(b"2" * 32, "default", "coder")
    others = [master.agent_key(b"1" * 32, *name) for name in (("default", "other"), ("other", "coder"))]
    assert len({each.expose() for each in (one, two, *others)}) == 4
    assert master.check != MasterKey(b"\1" * 32).check
    assert len(master.check) == 64
    sealed = memoryview(bytearray(21))
    one.pack_seal("1-a").seal_into(bytes(12), b"plain", b"", sealed)
    opened = memoryview(bytearray(5))
    one.pack_seal("1-a").open_into(bytes(12), sealed, b"", opened, "x")
    assert bytes(opened) == b"plain"
    for other in (one.pack_seal("1-b"), two.pack_seal("1-a"), one.manifest_seal()):
        with pytest.raises(IntegrityError, match="seal is broken"):
            other.open_into(bytes(12), sealed, b"", opened, "x")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    for kind in (MasterKey, AgentKey, Seal):
        with pytest.raises(ValueError, match="32 bytes"):
            kind(bytes(length))
