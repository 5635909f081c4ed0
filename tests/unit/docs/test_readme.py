"""The README's example runs exactly as printed, and continues after a kill as the README promises."""

import re
import time
from pathlib import Path

import pytest
import savepoint
from savepoint.testing import Simulation

README = (Path(__file__).parents[3] / "README.md").read_text()
FILES = ["minutes.txt", "offer.txt", "contract.txt", "report.txt", "invoice.txt"]


class Killed(BaseException):
    """Ends the example where ``kill -9`` would."""


def run_example() -> None:
    """Execute the README's only Python block, with no names but its own."""
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def check_each_file_was_handled_once(output: str) -> None:
    assert re.findall(r"^model call: (\S+)$", output, re.MULTILINE) == FILES
    mails = re.findall(r"^mail sent: +summary of (\S+) \(id (\w+)\)$", output, re.MULTILINE)
    assert [file for file, _ in mails] == FILES
    assert len({effect_id for _, effect_id in mails}) == len(FILES)
    assert re.findall(r"^finished: +(\d+) notes$", output, re.MULTILINE) == [str(len(FILES))]


def test_the_example_runs_without_savepoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("SAVEPOINT_SOCKET", "SAVEPOINT_REQUIRED"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    run_example()
    check_each_file_was_handled_once(capsys.readouterr().out)


@pytest.mark.parametrize("killed_in_call", range(2, len(FILES) + 1))
def test_the_example_continues_after_a_kill(
    killed_in_call: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    with Simulation() as life:

        def model_call(seconds: float) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                life.checkpoint_soon()
            if calls == killed_in_call:
                raise Killed

        monkeypatch.setattr(savepoint, "connect", life.start)
        monkeypatch.setattr(time, "sleep", model_call)
        with pytest.raises(Killed):
            run_example()
        life.crash()
        run_example()
        assert [checkpoint.completed for checkpoint in life.checkpoints] == [False, True]
    assert calls == len(FILES) + 1  # only the call that was cut off ran again
    check_each_file_was_handled_once(capsys.readouterr().out)
