"""The memory of a checkpoint writer, measured in its own process, does not depend on the size of the state."""

import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, resource, sys
from savepoint.repository.format.keys import AgentKey
from savepoint.repository.write.writer import CheckpointWriter

class Sink:
    put = 0
    def put_new(self, key, data):
        self.put += len(data)
    def get(self, key, *, max_bytes): raise AssertionError
    def get_into(self, key, offset, target): raise AssertionError
    def head(self, key): raise AssertionError

class Random:
    def __init__(self, length): self.length = length
    def read_into(self, offset, target):
        target[:] = hashlib.shake_256(offset.to_bytes(8, "big")).digest(len(target))
        return len(target)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

sink = Sink()
before = peak()
writer = CheckpointWriter(sink, sink, AgentKey(bytes(32)), 1, None)
writer.add_blob("weights", "ModelWeights", Random(int(sys.argv[1]) << 20))
writer.commit()
print(peak() - before, sink.put >> 20)
"""


@pytest.mark.parametrize("size_mib", [256])
def test_the_memory_of_a_writer_is_bounded(size_mib: int) -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(size_mib)], check=True, capture_output=True, text=True)
    grown_mib, put_mib = map(int, result.stdout.split())
    assert put_mib >= size_mib - 64, "all but the unfinished packs were uploaded"
    assert grown_mib <= 100
