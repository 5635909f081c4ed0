"""Tests of signals: what Ctrl-C does to an agent, and what the forked children of an agent do at a signal."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.sidecar import FakeSidecar
from tests.unit.sdk.test_socket import looping, spawn


@pytest.fixture
def sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSidecar]:
    with FakeSidecar(tmp_path) as fake:
        monkeypatch.setenv("SAVEPOINT_SOCKET", str(fake.socket))
        monkeypatch.setenv("SAVEPOINT_STAGE", str(fake.stage))
        yield fake


def started(program: str, **variables: str) -> "subprocess.Popen[str]":
    """Start a program and wait for the first line that it prints."""
    process = spawn(program, **variables)
    assert process.stdout is not None
    process.stdout.readline()
    return process


BLOCKED = "import savepoint, time; agent = savepoint.connect(); print(1, flush=True); time.sleep(600)"
IN_ASYNCIO = """if True:
    import asyncio, itertools, savepoint
    async def main():
        agent = savepoint.connect()
        print("ready", flush=True)
        for number in agent.loop("loop", itertools.count()):
            await asyncio.sleep(0.01)
    asyncio.run(main())
"""


def test_ctrl_c_flushes_at_the_next_safe_point_and_ends_as_ctrl_c_does(sidecar: FakeSidecar) -> None:
    process = started(looping())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT, errors
    assert "KeyboardInterrupt" in errors
    assert [request.reason for request in sidecar.requests] == ["Shutdown"]
    assert len(sidecar.flushes) == 1


def test_ctrl_c_flushes_in_a_program_whose_own_handler_of_sigterm_decides(sidecar: FakeSidecar) -> None:
    process = started(looping(before="signal.signal(signal.SIGTERM, lambda *_: None)"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, len(sidecar.flushes)) == (-signal.SIGINT, 1), errors


def test_ctrl_c_flushes_in_a_coroutine(sidecar: FakeSidecar) -> None:
    process = started(IN_ASYNCIO)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, len(sidecar.flushes)) == (-signal.SIGINT, 1), errors


def test_a_second_ctrl_c_ends_a_call_at_once(sidecar: FakeSidecar) -> None:
    process = started(
        "import savepoint, signal, time; agent = savepoint.connect(); ours = signal.getsignal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, lambda *a: (ours(*a), print(2, flush=True)))\n"
        "print(1, flush=True); time.sleep(600)"
    )
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None and process.stdout.readline() == "2\n"  # the first one raises nothing
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT


def test_the_grace_period_ends_a_call_that_ctrl_c_waits_for(sidecar: FakeSidecar) -> None:
    process = started(BLOCKED, SAVEPOINT_GRACE_SECONDS="0.5")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT, errors


@pytest.mark.parametrize(
    "before",
    [
        "signal.signal(signal.SIGINT, lambda *_: (print('own', flush=True), sys.exit(9)))",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)",
        "sys.ps1 = '>>> '",
    ],
    ids=["own handler", "default of the system", "interactive"],
)
def test_a_sigint_that_is_the_programs_own_is_left_alone(sidecar: FakeSidecar, before: str) -> None:
    process = started(looping(before=before))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == (9 if "exit" in before else -signal.SIGINT)
    assert not sidecar.requests and not sidecar.flushes


FORKING = """if True:
    import os, signal, sys, threading, time
    import savepoint
    {before}
    agent = savepoint.connect()
    def work():
        child = os.fork()
        if child == 0:
            try:
                print(os.getpid(), flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                os._exit(3)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    {call}
    os._exit(0)
"""
IN_A_THREAD = "worker = threading.Thread(target=work); worker.start(); worker.join()"


@pytest.mark.parametrize("call", ["work()", IN_A_THREAD], ids=["main thread", "other thread"])
@pytest.mark.parametrize(
    ("number", "before", "status"),
    [
        (signal.SIGTERM, "", -signal.SIGTERM),
        (signal.SIGINT, "", 3),
        (signal.SIGTERM, "signal.signal(signal.SIGTERM, lambda *_: os._exit(5))", 5),
        (signal.SIGTERM, "signal.signal(signal.SIGTERM, signal.SIG_IGN)", 0),
    ],
    ids=["SIGTERM", "SIGINT", "own handler", "ignored"],
)
def test_a_signal_acts_in_a_forked_child_as_without_savepoint(
    sidecar: FakeSidecar, call: str, number: signal.Signals, before: str, status: int
) -> None:
    program = FORKING.replace("time.sleep(60)", "time.sleep(0.5)") if "SIG_IGN" in before else FORKING
    process = spawn(program.format(before=before, call=call))
    assert process.stdout is not None
    child = int(process.stdout.readline())
    subprocess.run(["kill", f"-{number.value}", str(child)], check=True)
    output, errors = process.communicate(timeout=20)
    assert output == f"{status}\n", errors
    assert not sidecar.requests and not sidecar.flushes


POOL = """if True:
    import multiprocessing, savepoint, sys, time
    from concurrent.futures import ProcessPoolExecutor
    agent = savepoint.connect()
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
        pool.apply_async(time.sleep, (60,))
    executor = ProcessPoolExecutor(2, mp_context=fork)
    assert list(executor.map(abs, [-1, -2])) == [1, 2]
    executor.submit(time.sleep, 60)
    workers = list(executor._processes.values())
    for worker in workers:
        worker.terminate()
        worker.join(20)
    print([worker.exitcode for worker in workers], flush=True)
    agent.close()
"""


def test_the_workers_of_a_pool_end_when_they_are_terminated(sidecar: FakeSidecar) -> None:
    process = spawn(POOL)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "[-15, -15]\n"), errors
