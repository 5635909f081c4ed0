"""SQLite databases of agents without the SDK, captured while real processes hold, write or abandon them.

Each transaction of the agent keeps two invariants: the sum of all balances, and one row in the ledger for each
transfer counted. What would be restored must keep both, pass ``PRAGMA integrity_check``, and hold every transfer that
was committed before the capture began. Writers use a busy timeout of zero: none of their writes may be refused.
"""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from savepoint.errors import StateUnstable
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.restore import restore_tree
from savepoint_sidecar.capture import database_unit
from savepoint_sidecar.capture.capture import Capture
from savepoint_sidecar.capture.spool import Spool
from savepoint_sidecar.files.roots import Root

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import KEY, finish, writer_of

ACCOUNTS = 3000
AGENT = """
import sqlite3, sys, threading, time
path, journal, locking, phase, pause = sys.argv[1:6]
db = sqlite3.connect(path, timeout=0, isolation_level=None)
for each in (f"journal_mode={journal}", f"locking_mode={locking}", "cache_size=10", "synchronous=OFF"):
    db.execute("PRAGMA " + each).fetchone()

def setup():
    db.execute("BEGIN")
    db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, pad TEXT)")
    db.execute("CREATE TABLE ledger (n INTEGER)")
    db.execute("CREATE TABLE total (n INTEGER)")
    db.execute("INSERT INTO total VALUES (0)")
    db.executemany("INSERT INTO account VALUES (?, 100, ?)", ((i, "x" * 500) for i in range(3000)))
    db.execute("COMMIT")

def half(n):
    db.execute("UPDATE account SET balance = balance - 1 WHERE id % 3000 < 1500 AND id % 7 = ?", (n % 7,))
    db.execute("INSERT INTO ledger VALUES (?)", (n,))

def other_half(n):
    db.execute("UPDATE account SET balance = balance + 1 WHERE id >= 1500 AND (id - 1500) % 7 = ?", (n % 7,))
    db.execute("UPDATE total SET n = n + 1")

setup()
for n in range(5):
    db.execute("BEGIN"); half(n); other_half(n); db.execute("COMMIT")
if phase == "clean":
    db.close()
elif phase == "idle":
    print("ready", flush=True); sys.stdin.read()
elif phase == "open":
    db.execute("BEGIN"); half(5)
    print("ready", flush=True); sys.stdin.read()
elif phase == "writing":
    over, done, refused, small = threading.Event(), 5, 0, float(pause) > 0
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("ready", flush=True)
    while not over.wait(float(pause)):
        try:
            db.execute("BEGIN")
            if small:
                a, b = done % 1500, 1500 + done % 1500
                db.execute("UPDATE account SET balance = balance - 1 WHERE id = ?", (a,))
                db.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (b,))
                db.execute("INSERT INTO ledger VALUES (0)"); db.execute("UPDATE total SET n = n + 1")
            else:
                half(done); other_half(done)
            db.execute("COMMIT"); done += 1
        except sqlite3.OperationalError:
            refused += 1
            if db.in_transaction: db.execute("ROLLBACK")
    print(done, refused, flush=True)
"""
FILE_JOURNALS = ["DELETE", "TRUNCATE", "PERSIST", "WAL"]
JOURNALS = [*FILE_JOURNALS, "MEMORY", "OFF"]
LOCKINGS = ["NORMAL", "EXCLUSIVE"]


@dataclass
class State:
    """A state folder, and the checkpoints that a sidecar takes of it."""

    folder: Path

    def __post_init__(self) -> None:
        self.root = Root("files", "/data", self.folder / "state")
        self.root.path.mkdir()
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir()
        self.capture = Capture([self.root], (), time.time_ns)
        self.store, self.count = MemoryStore(), 0
        self.parent: Manifest | None = None

    def checkpoint(self) -> tuple[Path, list[str]]:
        """Capture as of now; return what a restore yields, and the warnings."""
        writer = writer_of(self.store, self.parent)
        drafts = self.capture.read_fuzzy(writer, self.scratch)
        self.capture.store(writer, drafts, None)
        self.parent = finish(writer)
        self.capture.committed(drafts)
        assert list(self.scratch.iterdir()) == []
        return self.restore(self.parent), drafts[0].warnings

    def restore(self, manifest: Manifest) -> Path:
        """Return what a restore of the checkpoint yields."""
        self.count += 1
        target = self.folder / f"restored{self.count}"
        target.mkdir()
        component = manifest.component("files.files")
        assert component is not None
        with CheckpointReader(self.store, KEY, manifest) as reader:
            restore_tree(reader, component, target)
        return target

    @contextmanager
    def agent(
        self, journal: str, locking: str, phase: str, *, pause: float = 0.0, name: str = "ledger"
    ) -> Iterator["subprocess.Popen[str]"]:
        """Run an agent until the end of the block; yield once it is in its phase."""
        process = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(self.root.path / name), journal, locking, phase, str(pause)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            if phase == "clean":
                assert process.wait(60) == 0
            else:
                assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
            process.communicate()


def finished(agent: "subprocess.Popen[str]") -> tuple[int, int]:
    """End a writing agent; return how many transfers it committed, and how many writes were refused."""
    output, _ = agent.communicate(timeout=60)
    done, refused = map(int, output.split())
    return done, refused


def kill(agent: "subprocess.Popen[str]") -> None:
    agent.send_signal(signal.SIGKILL)
    agent.wait(60)


def transfers(path: Path) -> int:
    """Check the invariants of a restored database; return how many transfers it holds."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*), sum(balance) FROM account").fetchone() == (ACCOUNTS, ACCOUNTS * 100)
        (count,) = db.execute("SELECT count(*) FROM ledger").fetchone()
        assert db.execute("SELECT n FROM total").fetchone() == (count,)
    return int(count)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("journal", JOURNALS)
def test_a_closed_database_is_restored(state: State, journal: str, locking: str) -> None:
    with state.agent(journal, locking, "clean"):
        restored, warnings = state.checkpoint()
        assert (transfers(restored / "ledger"), warnings) == (5, [])


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("journal", JOURNALS)
def test_a_database_held_open_is_restored_or_named(state: State, journal: str, locking: str) -> None:
    with state.agent(journal, locking, "idle"):
        restored, warnings = state.checkpoint()
        if locking == "EXCLUSIVE" and journal not in FILE_JOURNALS:
            assert "DatabaseBusy" in warnings[0] and "'ledger' is left out" in warnings[0]
            assert list(restored.iterdir()) == []
        else:
            assert (transfers(restored / "ledger"), warnings) == (5, [])


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("journal", JOURNALS)
def test_an_open_transaction_is_undone_or_the_database_is_named(state: State, journal: str, locking: str) -> None:
    with state.agent(journal, locking, "open"):
        restored, warnings = state.checkpoint()
        if journal in FILE_JOURNALS:
            assert (transfers(restored / "ledger"), warnings) == (5, [])
            assert [each.name for each in restored.iterdir()] == ["ledger"]
        else:
            assert "DatabaseBusy" in warnings[0] and "keeps no journal on disk" in warnings[0]
            assert list(restored.iterdir()) == []


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("journal", FILE_JOURNALS)
def test_a_transaction_that_kill_ended_is_undone(state: State, journal: str, locking: str) -> None:
    with state.agent(journal, locking, "open") as agent:
        kill(agent)
        before = {each.name: each.read_bytes() for each in state.root.path.iterdir()}
        restored, warnings = state.checkpoint()
        assert (transfers(restored / "ledger"), warnings) == (5, [])
        assert {each.name: each.read_bytes() for each in state.root.path.iterdir()} == before
        restored, warnings = state.checkpoint()  # from the table of the first one
        assert (transfers(restored / "ledger"), warnings) == (5, [])


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("journal", ["MEMORY", "OFF"])
def test_what_a_kill_leaves_without_a_journal_is_restored_as_it_is(state: State, journal: str, locking: str) -> None:
    with state.agent(journal, locking, "open") as agent:
        kill(agent)
        restored, _ = state.checkpoint()
        assert (restored / "ledger").read_bytes() == (state.root.path / "ledger").read_bytes()


@pytest.mark.parametrize("pause", [0.0, 0.01])
@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("journal", JOURNALS)
def test_captures_during_writes_refuse_none_of_them(state: State, journal: str, locking: str, pause: float) -> None:
    with state.agent(journal, locking, "writing", pause=pause) as agent:
        counts, busy = [], 0
        for _ in range(3):
            restored, warnings = state.checkpoint()
            if (restored / "ledger").exists():
                counts.append(transfers(restored / "ledger"))
            if warnings:
                assert all(each.startswith("DatabaseBusy: database 'ledger'") for each in warnings)
                busy += 1
            else:
                assert counts
        done, refused = finished(agent)
        assert refused == 0
        assert counts == sorted(counts) and (not counts or (counts[0] >= 5 and counts[-1] <= done))
        if journal == "WAL" or (locking == "NORMAL" and pause):
            assert busy == 0 and counts[-1] > 5
        restored, warnings = state.checkpoint()
        assert (transfers(restored / "ledger"), warnings) == (done, [])


def test_a_large_database_under_write_is_named_and_its_agent_is_never_refused(state: State) -> None:
    state.root.path.joinpath("notes").write_text("x")
    with state.agent("DELETE", "NORMAL", "clean"):
        pass
    first, warnings = state.checkpoint()
    assert (transfers(first / "ledger"), warnings) == (5, [])
    (state.root.path / "ledger").rename(state.root.path / "kept")
    with closing(sqlite3.connect(state.root.path / "kept", isolation_level=None)) as db:
        db.execute("CREATE TABLE big (content BLOB)")
        for _ in range(60):
            db.execute("INSERT INTO big VALUES (randomblob(1048576))")
    (state.root.path / "kept").rename(state.root.path / "ledger")
    writer = subprocess.Popen(
        [sys.executable, "-c", BUSY_WRITER, str(state.root.path / "ledger")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        restored, warnings = state.checkpoint()
        assert warnings == [
            "DatabaseBusy: database 'ledger' is stored as the last checkpoint has it: it is written too often to be "
            "read between two writes; use journal_mode=WAL"
        ]
        assert transfers(restored / "ledger") == 5
        assert (restored / "ledger").read_bytes() == (first / "ledger").read_bytes()
        output, _ = writer.communicate(timeout=60)
        assert output == "0\n", "writes were refused"
    finally:
        writer.kill()
        writer.communicate()
    restored, warnings = state.checkpoint()
    assert (transfers(restored / "ledger"), warnings) == (5, [])
    assert (restored / "ledger").stat().st_size > 60 << 20


BUSY_WRITER = """
import sqlite3, sys, threading
db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
over, refused = threading.Event(), 0
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("ready", flush=True)
while not over.wait(0.002):
    try:
        db.execute("INSERT INTO big VALUES (x'00')")
    except sqlite3.OperationalError:
        refused += 1
print(refused, flush=True)
"""


def test_a_log_that_restarts_too_often_is_read_by_a_backup(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_unit.DatabaseUnit, "_copy_once", lambda *_: None)
    monkeypatch.setattr(database_unit, "COPY_SECONDS", 0.0)
    with state.agent("WAL", "NORMAL", "writing") as agent:
        restored, warnings = state.checkpoint()
        assert warnings == [] and transfers(restored / "ledger") >= 5
        done, refused = finished(agent)
        assert refused == 0 and done > 5


def test_a_database_in_a_renamed_folder_under_any_name_is_restored(state: State) -> None:
    (state.root.path / "a folder").mkdir()
    with state.agent("DELETE", "NORMAL", "open", name="a folder/\u00e4 ?#%.txt") as agent:
        kill(agent)
        (state.root.path / "a folder").rename(state.root.path / "b")
        restored, warnings = state.checkpoint()
        assert (transfers(restored / "b" / "\u00e4 ?#%.txt"), warnings) == (5, [])


ATTACHED = """
import os, sqlite3, sys
os.chdir(sys.argv[1])
db = sqlite3.connect("main", timeout=0, isolation_level=None)
db.execute("ATTACH 'other' AS other")
for name in ("main", "other"):
    db.execute(f"CREATE TABLE {name}.t (n INTEGER, pad TEXT)")
    db.executemany(f"INSERT INTO {name}.t VALUES (1, ?)", [("x" * 500,)] * 500)
db.execute("PRAGMA synchronous=OFF"); db.execute("PRAGMA other.synchronous=OFF")
db.execute("PRAGMA cache_size=5"); db.execute("PRAGMA other.cache_size=5")
db.execute("BEGIN")
for name in ("main", "other"):
    db.execute(f"UPDATE {name}.t SET n = 2")
print("ready", flush=True); sys.stdin.read()
"""


def test_a_transaction_over_attached_databases_is_undone_in_both(state: State) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", ATTACHED, str(state.root.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout is not None and agent.stdout.readline() == "ready\n"
        for killed in (False, True):
            if killed:
                kill(agent)
            restored, warnings = state.checkpoint()
            assert warnings == []
            for name in ("main", "other"):
                with closing(sqlite3.connect(restored / name)) as db:
                    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                    assert db.execute("SELECT count(*), sum(n) FROM t").fetchone() == (500, 500)
    finally:
        agent.kill()
        agent.communicate()


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_paused_agent_with_an_open_transaction(state: State, journal: str) -> None:
    with state.agent(journal, "NORMAL", "open"):
        writer = writer_of(state.store)
        drafts = state.capture.precopy(writer)
        with Spool(state.scratch) as spool:
            if journal not in FILE_JOURNALS:
                with pytest.raises(StateUnstable, match="/data/ledger is a database with an exclusive lock"):
                    state.capture.final_pass(writer, drafts, spool)
                writer.abort()
                return
            finals = state.capture.final_pass(writer, drafts, spool)
            state.capture.store(writer, finals, spool)
        restored = state.restore(finish(writer))
        assert transfers(restored / "ledger") == 5


def test_a_full_stage_is_named(state: State) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(state.scratch)], check=True)
    try:
        with state.agent("WAL", "NORMAL", "open"):
            restored, warnings = state.checkpoint()
            assert list(restored.iterdir()) == []
            assert warnings[0].startswith("StageFull: database 'ledger' is left out: the stage has no room")
    finally:
        subprocess.run(["umount", str(state.scratch)], check=True)
