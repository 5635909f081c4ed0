"""The SDK over a real Unix socket, against a fake sidecar that follows the protocol and one that does not."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import savepoint
from savepoint.contract import agent_protocol as wire

from tests.fakes.sidecar import FakeSidecar, Refusal


@pytest.fixture
def sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSidecar]:
    with FakeSidecar(tmp_path) as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SAVEPOINT_REQUIRED", raising=False)
        yield fake


@pytest.fixture
def connect(sidecar: FakeSidecar) -> Iterator[Any]:
    agents: list[savepoint.Agent] = []

    def make(**options: Any) -> savepoint.Agent:
        agents.append(savepoint.connect(**options))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


def at_safe_points(agent: savepoint.Agent, until: Any, seconds: float = 10.0) -> None:
    """Pass safe points until a condition is true."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "the condition did not become true in time"
        agent.safe_point()
        time.sleep(0.001)


def test_connect_sends_its_process_and_receives_its_identity(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect(schema_version="3")
    assert (agent.name, agent.namespace, agent.epoch, agent.managed, agent.restored) == ("coder", "team", 1, True, None)
    sent = sidecar.connects[0]
    assert (sent.pid, sent.protocol, sent.schema_version, sent.reattach) == (os.getpid(), 1, "3", False)
    assert "pytest" in sent.dependencies


def test_flushes_at_a_safe_point_and_continues(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    agent.document("notes", []).append("é")
    sidecar.quiesce()
    at_safe_points(agent, lambda: sidecar.flushes)
    flush = sidecar.flushes[0]
    assert [(item.name, item.kind) for item in flush.components] == [
        ("documents", "Memory"), ("execution", "Execution"), ("effects", "Tools"),
    ]  # fmt: skip
    assert flush.components[0].entries[0].inline == '["é"]'
    sidecar.wait_for(lambda: bool(sidecar.pauses))
    assert sidecar.pauses[0].transaction == flush.transaction


def test_state_is_restored_in_the_next_process(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    agent.document("notes", []).append(1)
    agent.document("raw", bytearray()).extend(b"x" * 100)
    agent.document("large", {"text": "x" * (wire.INLINE_MAX_BYTES + 1)})
    agent.tensors("weights", lambda: {"w": memoryview(b"1234")})
    assert agent.checkpoint("because") == "coder-1"
    assert sidecar.requests[0].reason == "because"
    agent.step("after", lambda: 7)
    agent.close()
    agent = connect()
    assert agent.restored.checkpoint == "coder-1"
    assert agent.document("notes", []) == [1]
    assert agent.document("raw", bytearray()) == b"x" * 100
    assert len(agent.document("large", {})["text"]) == wire.INLINE_MAX_BYTES + 1
    loaded: dict[str, bytes] = {}
    agent.tensors("weights", lambda: {"w": b"1234"}, lambda saved: loaded.update(w=bytes(saved["w"].data)))
    assert loaded == {"w": b"1234"}
    assert agent.step("after", lambda: 8) == 7


def test_large_values_are_in_the_stage_until_the_result(sidecar: FakeSidecar, connect: Any) -> None:
    sidecar.sends_results = False
    agent = connect()
    agent.document("large", {"text": '"' * wire.INLINE_MAX_BYTES})
    transaction = sidecar.quiesce()
    at_safe_points(agent, lambda: sidecar.flushes)
    path = sidecar.stage / str(sidecar.flushes[0].components[0].entries[0].path)
    assert path.exists()
    sidecar.result(transaction)
    at_safe_points(agent, lambda: not path.exists())


def test_a_sidecar_that_refuses_or_hangs_never_breaks_the_agent(
    sidecar: FakeSidecar, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent = connect()
    release = threading.Event()

    def refuse(flush: wire.Flush) -> None:
        raise Refusal(409, "TransactionOver", "too late")

    def hang(flush: wire.Flush) -> None:
        release.wait(10)

    sidecar.on_flush = refuse
    sidecar.quiesce()
    at_safe_points(agent, lambda: "too late" in caplog.text)
    sidecar.on_flush = hang
    sidecar.quiesce(hold_seconds=0.2)
    began = time.monotonic()
    at_safe_points(agent, lambda: "did not answer in time" in caplog.text)
    assert time.monotonic() - began < 5
    release.set()
    sidecar.on_flush = lambda flush: None
    sidecar.quiesce()
    at_safe_points(agent, lambda: len(sidecar.flushes) >= 2)


def test_a_late_agent_reports_the_running_step(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()

    def crawl() -> None:
        sidecar.quiesce(timeout_seconds=0.3)
        sidecar.wait_for(lambda: bool(sidecar.failures))

    agent.step("crawl", crawl)
    failure = sidecar.failures[0]
    assert failure.reason == "QuiesceTimeout"
    assert "within 0.3 s (in step 'crawl' for 0 s)" in failure.message
    agent.safe_point()
    assert sidecar.flushes == []  # the order is void


def test_a_cancelled_order_is_not_served(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    gate = agent._session.gate
    transaction = sidecar.quiesce()
    wait(lambda: gate.attention)
    sidecar.send(wire.Cancelled(transaction, "DeadlineExceeded", "over"))
    wait(lambda: not gate.attention)
    sidecar.send(wire.Quiesce(transaction, 10, 10))  # every order may arrive twice
    sidecar.send(wire.Fenced("sync"))
    wait(lambda: agent._session.fenced)
    agent.safe_point()
    assert sidecar.flushes == []


def wait(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("reason", "error"),
    [("Unavailable", savepoint.Unavailable), ("QuiesceTimeout", savepoint.QuiesceTimeout), ("Odd", savepoint.Refused)],
)
def test_a_checkpoint_that_fails_raises_its_reason(
    sidecar: FakeSidecar, connect: Any, reason: str, error: type[Exception]
) -> None:
    agent = connect()
    sidecar.on_request = lambda request: sidecar.send(
        wire.Result("", "Failed", request.request, "", reason, "the cause")
    )
    with pytest.raises(error, match="the cause"):
        agent.checkpoint()


def test_a_checkpoint_without_a_result_raises_at_its_timeout(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    sidecar.on_request = lambda request: None
    with pytest.raises(savepoint.DeadlineExceeded, match="no result of the checkpoint"):
        agent.checkpoint(timeout=0.1)


def test_a_checkpoint_without_a_sidecar_raises(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    sidecar.on_request = lambda request: threading.Thread(target=sidecar.stop, daemon=True).start()
    with pytest.raises(savepoint.Unavailable):
        agent.checkpoint()
    with pytest.raises(savepoint.Unavailable):
        agent.checkpoint()


def test_finish_completes_the_run(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    agent.document("notes", []).append(1)
    first = agent.effect("mail", lambda op: op.id)
    assert agent.finish() == "coder-1"
    assert sidecar.finished
    agent = connect()
    assert agent.restored is None
    assert agent.document("notes", []) == []
    assert agent.effect("mail", lambda op: op.id) != first


def test_finish_without_a_sidecar_raises_and_can_be_retried(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    sidecar.stop()
    with pytest.raises(savepoint.Unavailable):
        agent.finish()
    sidecar.start()
    wait(lambda: len(sidecar.connects) == 2)
    wait(lambda: agent._session.keep_alive.id() == "session-2")
    assert agent.finish() == "coder-1"


def test_the_sdk_reattaches_to_a_restarted_sidecar_without_touching_state(
    sidecar: FakeSidecar, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent = connect()
    notes = agent.document("notes", [])
    agent.checkpoint()
    notes.append("newer")
    sidecar.stop()
    wait(lambda: "lost connection to the sidecar" in caplog.text)
    agent.safe_point()
    assert agent.step("alone", lambda: 1) == 1
    sidecar.start()
    wait(lambda: len(sidecar.connects) == 2)
    second = sidecar.connects[1]
    assert (second.instance, second.reattach) == (sidecar.connects[0].instance, True)
    wait(lambda: sidecar._session is not None)
    sidecar.quiesce()
    at_safe_points(agent, lambda: len(sidecar.flushes) == 2)
    assert sidecar.flushes[1].components[0].entries[0].inline == '["newer"]'
    assert notes == ["newer"]


def test_an_agent_that_cannot_reattach_keeps_running(
    sidecar: FakeSidecar, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar.features = ()
    agent = connect()
    sidecar.stop()
    wait(lambda: "lost connection to the sidecar" in caplog.text)
    sidecar.start()
    for _ in agent.loop("loop", range(3)):
        agent.safe_point()
    assert len(sidecar.connects) == 1


def test_a_required_agent_that_cannot_reattach_raises(
    sidecar: FakeSidecar, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVEPOINT_REQUIRED", "1")
    sidecar.features = ()
    agent = connect()
    sidecar.stop()
    wait(lambda: agent._session.gate.attention)
    with pytest.raises(savepoint.Unavailable, match="lost connection to the sidecar"):
        agent.safe_point()


def test_a_process_has_one_session(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    with pytest.raises(savepoint.SessionInUse, match="already"):
        savepoint.connect()
    agent.close()
    connect()


def test_an_agent_has_one_session(sidecar: FakeSidecar, connect: Any) -> None:
    connect()
    program = "import savepoint\ntry: savepoint.connect()\nexcept savepoint.SessionInUse as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert f"process {os.getpid()} is connected" in done.stdout


def test_the_reason_of_a_failed_restore_is_raised(sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connect: wire.Connect) -> wire.Connected:
        raise Refusal(503, "IntegrityError", "pack 7 is damaged")

    sidecar.connect = refuse  # type: ignore[method-assign]
    with pytest.raises(savepoint.SavepointError, match="pack 7 is damaged") as caught:
        savepoint.connect()
    assert caught.value.reason == "IntegrityError"
    with pytest.raises(savepoint.SavepointError, match="pack 7"):  # the failed call keeps no session
        savepoint.connect()


def test_a_missing_stage_is_reported(sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAVEPOINT_STAGE")
    with pytest.raises(savepoint.Unavailable, match="SAVEPOINT_STAGE"):
        savepoint.connect()


def test_an_order_to_fence_refuses_effects_until_it_is_revoked(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    sidecar.send(wire.Fenced("silent for 10 s"))
    wait(lambda: agent._session.fenced)
    with pytest.raises(savepoint.Superseded, match="silent for 10 s"):
        agent.effect("mail", lambda op: None)
    sidecar.send(wire.Unfenced())
    wait(lambda: not agent._session.fenced)
    agent.effect("mail", lambda op: None)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_must_not_use_the_session(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    agent.step("before", lambda: 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcomes = []
        for call in (agent.safe_point, lambda: agent.step("x", int), lambda: agent.document("d", {}), agent.checkpoint):
            try:
                call()
                outcomes.append("nothing")
            except savepoint.SessionInUse as error:
                outcomes.append(str(error)[:24])
            except BaseException as error:
                outcomes.append(repr(error))
        os.write(writer, json.dumps(outcomes).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(reader, 10_000)) == ["this is a forked child o"] * 4
    os.close(reader)
    os.close(writer)
    assert not sidecar.session.ended.is_set()  # the end of the child does not end the session
    agent.checkpoint()
    agent.close()
    assert sidecar.session.ended.wait(5)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_the_end_of_the_parent_is_noticed_while_a_forked_child_lives(sidecar: FakeSidecar) -> None:
    program = """if True:
        import os, savepoint, signal, time
        agent = savepoint.connect()
        child = os.fork()
        if child == 0:
            time.sleep(60)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = spawn(program)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.wait(20)
        assert sidecar.session.ended.wait(5)
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate(timeout=20)


def spawn(program: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **variables},
    )  # fmt: skip


LOOPING = """if True:
    import itertools, logging, signal, sys, time
    import savepoint
    logging.basicConfig()
    {before}
    agent = savepoint.connect({options})
    notes = agent.document("notes", [])
    print("ready", flush=True)
    for number in agent.loop("loop", itertools.count()):
        notes.append(number)
        time.sleep(0.01)
        {inside}
    {after}
"""


def looping(before: str = "", options: str = "", inside: str = "", after: str = "") -> str:
    return LOOPING.format(before=before, options=options, inside=inside, after=after)


def test_sigterm_flushes_at_the_next_safe_point_and_ends_with_143(sidecar: FakeSidecar) -> None:
    process = spawn(looping())
    assert process.stdout is not None
    process.stdout.readline()
    sidecar.stopping()  # as the pod's preStop hook makes the sidecar do
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
    assert len(sidecar.flushes) == 1


def test_sigterm_without_an_order_requests_the_final_checkpoint(sidecar: FakeSidecar) -> None:
    process = spawn(looping())
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
    assert [request.reason for request in sidecar.requests] == ["Shutdown"]
    assert len(sidecar.flushes) == 1


def test_after_a_refusal_the_sdk_still_waits_for_the_order_to_stop(sidecar: FakeSidecar) -> None:
    """An operator that is stopping refuses; on a busy node the pod's hook runs seconds after SIGTERM."""

    def refuse(request: wire.CheckpointRequest) -> None:
        sidecar.send(wire.Result("", "Failed", request.request, reason="Unavailable", message="not now"))
        threading.Timer(0.5, sidecar.stopping).start()

    sidecar.on_request = refuse
    process = spawn(looping())
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
    assert len(sidecar.flushes) == 1


def test_a_call_that_never_returns_is_ended_before_the_grace_period(sidecar: FakeSidecar) -> None:
    process = spawn("import savepoint, time; agent = savepoint.connect(); print(1, flush=True); time.sleep(600)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    sidecar.stopping(grace_seconds=2)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors


@pytest.mark.parametrize("accepted", [False, True], ids=["given up", "accepted"])
@pytest.mark.parametrize("early", [False, True], ids=["signal first", "order first"])
def test_a_flush_in_progress_at_sigterm_is_not_the_final_one(sidecar: FakeSidecar, accepted: bool, early: bool) -> None:
    """The sidecar ends an incomplete attempt when the pod stops, and orders the flush that counts."""
    process = spawn(looping())
    assert process.stdout is not None
    process.stdout.readline()
    transactions = []

    def on_flush(flush: wire.Flush) -> None:
        transactions.append(flush.transaction)
        if flush.transaction != first:
            return
        if early:
            transactions.append(sidecar.stopping())
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        if not early:
            transactions.append(sidecar.stopping())
        if not accepted:
            sidecar.send(wire.Cancelled(first, "Unavailable", "the pod is stopping"))
            raise Refusal(409, "TransactionOver", "this flush is no longer expected")

    sidecar.on_flush = on_flush
    first = sidecar.quiesce()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
    assert transactions[0] == first and transactions[1] == transactions[2], "the order to stop was not served"
    assert len(transactions) == 3 and not sidecar.requests


def test_a_stopping_order_alone_ends_the_process(sidecar: FakeSidecar) -> None:
    process = spawn(looping())
    assert process.stdout is not None
    process.stdout.readline()
    sidecar.stopping()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
    assert len(sidecar.flushes) == 1


def test_a_program_with_its_own_handler_decides_when_to_exit(sidecar: FakeSidecar) -> None:
    process = spawn(
        looping(
            before="stop = []; signal.signal(signal.SIGTERM, lambda *_: stop.append(1))",
            inside="if stop: break",
            after="agent.checkpoint(); print(len(notes) > 0); sys.exit(7)",
        )
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (7, "True\n"), errors
    assert sidecar.flushes


def test_opting_out_leaves_sigterm_alone(sidecar: FakeSidecar) -> None:
    process = spawn(looping(options="sigterm=False"))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM
    assert sidecar.session.ended.wait(5)


def test_a_call_that_never_returns_is_ended_by_the_second_sigterm(sidecar: FakeSidecar) -> None:
    process = spawn("import savepoint, time; agent = savepoint.connect(); print(1, flush=True); time.sleep(600)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors


def test_sigterm_has_its_default_effect_after_another_thread_closed_the_session(sidecar: FakeSidecar) -> None:
    process = spawn("""if True:
        import savepoint, threading, time
        agent = savepoint.connect()
        worker = threading.Thread(target=agent.finish)
        worker.start()
        worker.join()
        print(1, flush=True)
        time.sleep(600)
    """)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_a_worker_thread_that_flushes_ends_the_process(sidecar: FakeSidecar) -> None:
    process = spawn("""if True:
        import itertools, savepoint, threading, time
        agent = savepoint.connect()
        def work():
            for _ in agent.loop("loop", itertools.count()):
                time.sleep(0.01)
        threading.Thread(target=work, daemon=True).start()
        print(1, flush=True)
        time.sleep(600)
    """)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
    assert len(sidecar.flushes) == 1


def test_sigterm_ends_every_thread_that_reaches_a_safe_point(sidecar: FakeSidecar) -> None:
    process = spawn("""if True:
        import itertools, savepoint, threading, time
        agent = savepoint.connect()
        def work(name):
            for _ in agent.loop(name, itertools.count()):
                time.sleep(0.01)
        for name in "ab":
            threading.Thread(target=work, args=(name,)).start()
        print(1, flush=True)
        work("main")
    """)
    assert process.stdout is not None
    process.stdout.readline()
    sidecar.stopping()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (143, "")
    assert len(sidecar.flushes) == 1


def test_a_killed_process_continues_where_it_was(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """A real process is killed with SIGKILL repeatedly."""
    made = tmp_path / "made"
    program = f"""if True:
        import os, savepoint, time
        agent = savepoint.connect()
        notes = agent.document("notes", [])
        def work(n):
            with open({str(made)!r}, "a") as file:
                file.write(f"{{n}}\\n")
            return n
        for n in agent.loop("loop", range(60)):
            notes.append(agent.step("work", work, n))
            print(n, flush=True)
            time.sleep(0.002)
        print("notes", notes)
        agent.finish()
    """
    for start in range(6):
        process = spawn(program)
        assert process.stdout is not None
        if start == 5:
            break
        for _ in range(9):
            process.stdout.readline()
        sidecar.quiesce()
        for _ in range(start):
            process.stdout.readline()
        process.kill()
        process.communicate(timeout=20)
    output, errors = process.communicate(timeout=60)
    assert f"notes {list(range(60))}" in output, errors
    lines = made.read_text().split()
    assert sorted(set(lines), key=int) == [str(n) for n in range(60)]
    assert len(lines) - 60 <= 5  # at most the step that ran when the process died


def test_import_needs_the_standard_library_only() -> None:
    program = """if True:
        import sys
        before = set(sys.modules)
        import savepoint, savepoint.testing
        savepoint.connect().finish()
        for name in savepoint.__all__: getattr(savepoint, name)
        roots = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(root for root in roots if root not in sys.stdlib_module_names and root != "savepoint"))
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAVEPOINT")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert done.stdout == "[]\n"
    assert "not managed" in done.stderr


def test_a_safe_point_without_an_order_costs_microseconds(sidecar: FakeSidecar, connect: Any) -> None:
    agent = connect()
    rounds = 20_000
    best = min(_timed(agent.safe_point, rounds) for _ in range(5))
    assert best / rounds < 5e-6  # about 0.3 µs on an idle machine; the one that runs tests is busy


def _timed(call: Any, rounds: int) -> float:
    began = time.perf_counter()
    for _ in range(rounds):
        call()
    return time.perf_counter() - began


def test_logs_one_line_for_the_restored_state(
    sidecar: FakeSidecar, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent = connect()
    agent.step("a", lambda: 1)
    agent.checkpoint()
    agent.close()
    with caplog.at_level(logging.INFO, "savepoint"):
        connect()
    assert [record.getMessage() for record in caplog.records] == ["restarted from coder-1: recorded_steps=1"]
