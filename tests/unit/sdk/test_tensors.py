"""Arrays are staged twice, copied where they differ, and held until their transaction ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import savepoint
from hypothesis import given
from hypothesis import strategies as st
from savepoint import testing
from savepoint.contract.agent_protocol import Component
from savepoint.sdk import memory
from savepoint.sdk.stage import Stage, create_mapped
from savepoint.sdk.tensors import TensorSet

from tests.unit.sdk.test_journal import volume_of


@pytest.fixture
def simulation() -> Iterator[testing.Simulation]:
    with testing.Simulation() as simulation:
        yield simulation


def contents(stage: Stage, component: Component) -> dict[str, bytes]:
    return {entry.name: (stage.root / str(entry.path)).read_bytes() for entry in component.entries}


def test_arrays_are_restored_with_dtype_and_shape(simulation: testing.Simulation) -> None:
    arrays: dict[str, Any] = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.array(7),
        "empty": np.zeros((0, 4), np.int8),
        "raw": bytearray(b"abc"),
    }
    agent = simulation.start()
    agent.tensors("weights", lambda: arrays, kind="OptimizerState")
    arrays["matrix"] += 1
    agent.checkpoint()
    simulation.crash(lose_stage=True)
    loaded: dict[str, savepoint.Tensor] = {}
    simulation.start().tensors("weights", lambda: arrays, loaded.update)
    matrix = np.frombuffer(loaded["matrix"].data, loaded["matrix"].dtype).reshape(loaded["matrix"].shape)
    assert (matrix == arrays["matrix"]).all()
    assert (loaded["scalar"].shape, loaded["empty"].shape, loaded["empty"].dtype) == ((), (0, 4), "int8")
    assert (bytes(loaded["raw"].data), loaded["raw"].dtype) == (b"abc", None)
    with pytest.raises(TypeError):
        loaded["raw"].data[0] = 1
    component = next(item for item, _ in simulation.checkpoints[-1].components if item.name == "tensors.weights")
    assert component.kind == "OptimizerState"


def test_a_set_that_is_not_registered_again_is_kept(simulation: testing.Simulation) -> None:
    agent = simulation.start()
    agent.tensors("weights", lambda: {"w": b"abc"})
    agent.checkpoint()
    for _ in range(3):
        simulation.crash(lose_stage=True)
        simulation.start().checkpoint()
    loaded: dict[str, savepoint.Tensor] = {}
    simulation.start().tensors("weights", lambda: {"w": b"new"}, loaded.update)
    assert bytes(loaded["w"].data) == b"abc"


def test_only_what_changed_is_copied(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    array = np.zeros(64 * memory.BLOCK_BYTES, np.uint8)
    tensors = TensorSet("w", "ModelWeights", lambda: {"w": array}, stage)
    tensors.fill_buffers()
    array[5 * memory.BLOCK_BYTES] = 1
    component = tensors.flush("1")
    assert tensors.copied_bytes == memory.BLOCK_BYTES
    assert contents(stage, component)["w"] == array.tobytes()
    tensors.release("1")
    array[9 * memory.BLOCK_BYTES] = 1
    tensors.flush("2")
    assert tensors.copied_bytes == 2 * memory.BLOCK_BYTES  # the other buffer lacks both changes


def test_a_buffer_is_not_touched_before_its_result(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    array = np.zeros(100, np.uint8)
    tensors = TensorSet("w", "ModelWeights", lambda: {"w": array}, stage)
    tensors.fill_buffers()
    first = tensors.flush("1")
    array[:] = 1
    second = tensors.flush("2")
    array[:] = 2
    with pytest.raises(savepoint.Unavailable, match="both buffers"):
        tensors.flush("3")
    assert contents(stage, first)["w"] == bytes(100)
    assert contents(stage, second)["w"] == bytes([1]) * 100
    tensors.release("1")
    assert contents(stage, tensors.flush("3"))["w"] == bytes([2]) * 100
    assert contents(stage, second)["w"] == bytes([1]) * 100


def test_sets_may_grow_shrink_and_change(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    arrays: dict[str, Any] = {"a": b"1", "b": b"22"}
    tensors = TensorSet("w", "ModelWeights", lambda: arrays, stage)
    for number, now in enumerate(({"a": b"1"}, {"a": b"333", "c": b""}, {}, {"c": b"4", "a/../b": b"5"})):
        arrays.clear()
        arrays.update(now)
        assert contents(stage, tensors.flush(str(number))) == now
        tensors.release(str(number))
    assert len(list(tmp_path.rglob("tensors-*/*"))) <= 4  # arrays removed from a set leave no file


def test_a_full_stage_fails_the_checkpoint_but_not_the_agent(simulation: testing.Simulation) -> None:
    arrays = {"w": b"x" * 1000}
    agent = simulation.start()
    agent.tensors("weights", lambda: arrays)
    arrays["w"] = b"y" * 100_000
    with volume_of(50_000), pytest.raises(savepoint.StageFull, match="make it larger"):
        agent.checkpoint()
    assert agent.checkpoint() == "agent-1"
    arrays["w"] = b"z" * 200_000
    agent.document("large", {"text": "x" * 2_000_000})
    with volume_of(1_000_000), pytest.raises(savepoint.StageFull):
        agent.checkpoint()
    assert agent.checkpoint() == "agent-2"
    assert agent.checkpoint() == "agent-3"


def test_a_full_stage_at_registration_is_a_warning(
    simulation: testing.Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = simulation.start()
    with volume_of(1000):
        agent.tensors("weights", lambda: {"w": b"x" * 10_000})
    assert "'weights' are not staged" in caplog.text
    assert agent.checkpoint() == "agent-1"


@pytest.mark.parametrize("value", [object(), "text", np.zeros((4, 4))[:, ::2], memoryview(b"abcd")[::2]])
def test_a_value_without_a_contiguous_buffer_is_named(simulation: testing.Simulation, value: Any) -> None:
    with pytest.raises(savepoint.NotEncodable, match=r"tensors\.weights\.w is a .*contiguous"):
        simulation.start().tensors("weights", lambda: {"w": value})


def test_a_dtype_that_buffers_do_not_support_is_saved_as_its_bytes(tmp_path: Path) -> None:
    array = np.array(["2000-01-01", "2000-01-02"], "datetime64[D]")
    with pytest.raises(ValueError, match="cannot include dtype"):
        memoryview(array)  # type: ignore[arg-type]
    stage = Stage(tmp_path)
    component = TensorSet("w", "Custom", lambda: {"t": array}, stage).flush("1")
    assert contents(stage, component)["t"] == array.tobytes()
    assert component.entries[0].meta == {"dtype": "datetime64[D]", "shape": [2]}


@given(st.binary(min_size=1, max_size=300), st.binary(min_size=1, max_size=300), st.integers(1, 70))
def test_refresh_makes_the_mapped_bytes_equal_to_the_source(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, block: int
) -> None:
    size = min(len(old), len(new))
    mapped = create_mapped(tmp_path_factory.mktemp("stage") / "f", size)
    memory.fill(mapped, memoryview(old)[:size])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "BLOCK_BYTES", block)
        memory.refresh(mapped, memoryview(new)[:size])
    assert mapped[:] == new[:size]
    mapped.close()


def test_unknown_kinds_are_refused(simulation: testing.Simulation) -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        simulation.start().tensors("weights", dict, kind="Weights")  # type: ignore[arg-type]
