"""The stage's index of restored values, and the journals that are kept in it."""

from pathlib import Path

from savepoint_sidecar.stage.components import begin_epoch, index_sequence, prepare_stage, read_index, write_index


def test_an_index_is_read_for_its_own_checkpoint_only(tmp_path: Path) -> None:
    prepare_stage(tmp_path, 1)
    write_index(tmp_path, 7, ())
    assert index_sequence(tmp_path) == 7 and read_index(tmp_path, 7) == () and read_index(tmp_path, 8) is None
    write_index(tmp_path, -1, ())
    assert index_sequence(tmp_path) is None
    (tmp_path / "restored" / "index.json").write_text("[]")
    assert index_sequence(tmp_path) is None and read_index(tmp_path, 7) is None


def test_a_journal_is_kept_as_long_as_its_epoch_in_one_pod(tmp_path: Path) -> None:
    prepare_stage(tmp_path, 1)
    record = tmp_path / "journal" / "1" / "3.log"
    record.parent.mkdir()
    record.write_text("done")
    for _ in range(2):  # a new pod; then its init container runs again, as after a reboot of its node
        begin_epoch(tmp_path, 4, 1)
        assert record.exists()
    begin_epoch(tmp_path, 5, 1)  # the agent was rolled back
    assert not record.parent.exists()
    begin_epoch(tmp_path, 5, 1)
