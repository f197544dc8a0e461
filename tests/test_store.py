"""The job store on one file: against a model, from several processes, after kill -9, with every fault of a file, and after a fork."""

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from cjm_worker_protocols.core.errors import ConfigError, JobStoreError
from cjm_worker_protocols.extensions.store import JobChunk, JobEnd, JobMove, JobStoreProtocol, NewJob, StoredJob
from cjm_worker_protocols.integrations.store import (
    SQLiteJobStore,
    StoreDamagedError,
    StoreFileLostError,
    StoreFolderError,
    StoreForkedError,
    StoreFullError,
    StoreLockedError,
    StoreLockingError,
    StorePermissionError,
    StoreReadOnlyError,
    StoreVersionError,
    retry_job,
)
from cjm_worker_protocols.integrations.store.errors import store_error
from cjm_worker_protocols.integrations.store.files import SideFiles
from cjm_worker_protocols.integrations.store.retention import Retention
from cjm_worker_protocols.integrations.store.schema import APPLICATION, VERSION, make_database, migrate
from cjm_worker_protocols.integrations.store.uploads import add_owner, make_folder, owners_of

TYPE = "test"


def new(job_id: str, **more: Any) -> NewJob:
    """A job."""
    return NewJob(job_id, "plugin", b"parameters of " + job_id.encode(), time.time(), **more)


def ended(job_id: str, status: str = "completed", result: "bytes | None" = b"result") -> JobEnd:
    """Its end."""
    return JobEnd(job_id, status, time.time(), result)


def states(store: SQLiteJobStore) -> "dict[str, str]":
    """Every job and its status."""
    return {job.id: job.status for job in store.select(TYPE, limit=100_000)}


@pytest.fixture
def store(tmp_path: Path) -> SQLiteJobStore:
    """A store on a new file."""
    return SQLiteJobStore(tmp_path / "jobs.db")


# Against a model


class Model(RuleBasedStateMachine):
    """Two stores on one file, several managers, and what should be in it."""

    managers = Bundle("managers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.stores = [SQLiteJobStore(os.path.join(self.folder.name, "jobs.db")) for _ in range(2)]
        self.stores[0].database.files.LIMIT = self.stores[1].database.files.LIMIT = 50
        self.jobs: "dict[str, dict[str, Any]]" = {}  # In order
        self.open: "dict[str, SQLiteJobStore]" = {}

    @rule(target=managers, which=st.integers(0, 1))
    def opens(self, which: int) -> str:
        """A manager begins."""
        manager = self.stores[which].open(TYPE)
        assert manager not in self.open
        self.open[manager] = self.stores[which]
        return manager

    @rule(manager=managers)
    def closes(self, manager: str) -> None:
        """A manager ends."""
        if (store := self.open.pop(manager, None)) is None:
            with pytest.raises(ConfigError):
                self.stores[0].claim(manager)
            return
        store.close(manager)
        for job in self.jobs.values():
            if job["holder"] == manager:
                job["holder"] = None

    @rule(
        manager=managers,
        sizes=st.lists(st.integers(0, 100), max_size=3),
        key=st.sampled_from([None, None, "a", "b"]),
        owner=st.sampled_from([None, "", "ada"]),
        moves=st.lists(
            st.tuples(st.integers(0, 20), st.sampled_from(["pending", "running"])), max_size=3, unique_by=lambda m: m[0]
        ),
        ends=st.lists(
            st.tuples(st.integers(0, 20), st.sampled_from(["completed", "failed"])),
            max_size=3,
            unique_by=lambda m: m[0],
        ),
        chunks=st.integers(0, 4),
    )
    def writes(self, manager: str, sizes: Any, key: Any, owner: Any, moves: Any, ends: Any, chunks: int) -> None:
        """A batch."""
        if manager not in self.open:
            return
        before, ids = dict(self.jobs), list(self.jobs)
        added = [
            NewJob(f"job-{len(ids) + n}", "plugin", b"p" * size, 0.0, owner=owner, key=key)
            for n, size in enumerate(sizes)
        ]
        moved = [JobMove(ids[n % len(ids)], status, n, 1.0) for n, status in moves if ids]
        moved = list({move.id: move for move in moved}.values())
        over = [JobEnd(ids[n % len(ids)], status, time.time(), b"r" * n * 9) for n, status in ends if ids]
        over = list({end.id: end for end in over}.values())
        told = [JobChunk(ids[0], n, b"c", 2) for n in range(chunks) if ids and before[ids[0]]["holder"] == manager]
        answer = self.open[manager].write(manager, added, moved, over, told)
        refused = []
        for job in added:
            same = [
                i
                for i, known in self.jobs.items()
                if key is not None and (known["owner"], known["key"]) == (owner, key)
            ]
            if same:
                assert answer.existing[job.id].id == same[0]
                continue
            facts = {
                "status": "pending",
                "params": job.params,
                "result": None,
                "holder": manager,
                "owner": owner,
                "key": key,
                "chunks": [],
            }
            self.jobs[job.id] = facts
            assert answer.places[job.id] > max(
                map(int, [known.get("place", 0) for known in before.values()]), default=0
            )
            facts["place"] = answer.places[job.id]
        changes: "list[JobMove | JobEnd]" = [*moved, *over]
        for change in changes:
            known = self.jobs[change.id]
            if known["holder"] != manager or known["status"] in ("completed", "failed"):
                refused.append(change.id)
                continue
            known["status"] = change.status
            if isinstance(change, JobEnd):
                known["result"] = change.result
        if told:
            known = self.jobs[ids[0]]
            known["chunks"] = sorted({*known["chunks"], *range(chunks)})
            known["chunks"] = [n for n in known["chunks"] if n > chunks - 3]
        assert sorted(answer.refused) == sorted(refused)

    @rule(manager=managers)
    def claims(self, manager: str) -> None:
        """What no living manager holds is taken over, in order."""
        if manager not in self.open:
            return
        free = [i for i, job in self.jobs.items() if job["holder"] is None and job["status"] in ("pending", "running")]
        assert [job.id for job in self.open[manager].claim(manager)] == free
        for job_id in free:
            self.jobs[job_id]["holder"] = manager

    @rule(number=st.integers(0, 20), manager=managers)
    def cancels(self, number: int, manager: str) -> None:
        """Only its holder hears of it, and only while it has not ended."""
        if not self.jobs:
            return
        job_id = list(self.jobs)[number % len(self.jobs)]
        self.stores[number % 2].request_cancel(job_id)
        job = self.jobs[job_id]
        job["wanted"] = job.get("wanted") or job["status"] in ("pending", "running")
        if manager in self.open:
            wanted = {i for i, job in self.jobs.items() if job.get("wanted") and job["holder"] == manager}
            wanted = {i for i in wanted if self.jobs[i]["status"] in ("pending", "running")}
            assert set(self.open[manager].cancellations(manager)) == wanted

    @rule(number=st.integers(0, 20))
    def forgets(self, number: int) -> None:
        """A job is removed."""
        ended = [i for i, job in self.jobs.items() if job["status"] in ("completed", "failed")]
        if ended:
            self.stores[number % 2].forget([job_id := ended[number % len(ended)]])
            self.jobs[job_id].update(gone=True)

    @invariant()
    def same(self) -> None:
        """Both stores see what the model says."""
        for job_id in [i for i, job in self.jobs.items() if job.get("gone")]:
            self.jobs[job_id].update(key=None)
        here = {i: job for i, job in self.jobs.items() if not job.get("gone")}
        for store in self.stores if self.open else ():
            assert states(store) == {i: job["status"] for i, job in here.items()}
            assert [job.id for job in store.select(TYPE, limit=2)] == list(here)[::-1][:2]
        for job_id, job in list(here.items())[-2:] if self.open else ():
            assert self.stores[0].payload(job_id) == (job["params"], job["result"])
            assert [n for n, _ in self.stores[0].chunks(job_id)] == job["chunks"]

    def teardown(self) -> None:
        """No file is left that no row names."""
        store = self.stores[0]
        if self.jobs:
            with store.database as db:
                rows = db.execute("SELECT params_file, result_file FROM jobs")
                named = {name for row in rows for name in row} - {None, ""}
            folder = store.database.files.folder
            assert set(os.listdir(folder) if os.path.exists(folder) else ()) == named
        for manager, store in self.open.items():
            store.close(manager)
        for store in self.stores:
            store.database.disconnect()
        self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


# Several processes

HEAD = """
import sys, os, time
from cjm_worker_protocols.extensions.store import *
from cjm_worker_protocols.integrations.store import *
store = SQLiteJobStore(sys.argv[1], lock_timeout=20)
def new(i, **more): return NewJob(i, "plugin", b"", 0.0, **more)
"""


@contextmanager
def process(store: SQLiteJobStore, code: str, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """A process with a store on the same file."""
    command = [sys.executable, "-c", HEAD + code, store.path, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def line(started: "subprocess.Popen[str]") -> str:
    """The next line that it prints."""
    assert started.stdout is not None
    return started.stdout.readline().strip()


def test_a_dead_process_lets_go_and_a_stopped_one_does_not(store: SQLiteJobStore) -> None:
    """A manager is alive until its process has died, for however long it is stopped."""
    mine = store.open(TYPE)
    code = """
m = store.open('test')
store.write(m, [new('a'), new('b')], [JobMove('a', 'running', 1, 1.0)], [], [])
print(m, flush=True); sys.stdin.read()
"""
    with process(store, code) as other:
        assert line(other) != mine
        assert store.claim(mine) == []
        os.kill(other.pid, signal.SIGSTOP)
        assert store.claim(mine) == []
        other.kill()
        other.wait()
        assert [(job.id, job.status, job.attempts) for job in store.claim(mine)] == [
            ("a", "running", 1),
            ("b", "pending", 0),
        ]
    assert store.claim(mine) == []


def test_jobs_of_the_dead_go_to_one_of_many(store: SQLiteJobStore) -> None:
    """Several processes claim at once, again and again; each job is taken once, in order."""
    mine = store.open(TYPE)
    store.write(mine, [new(f"job-{n}") for n in range(200)], [], [], [])
    code = """
m = store.open('test'); print('ready', flush=True); sys.stdin.readline()
print(*[job.id for job in store.claim(m)], flush=True); sys.stdin.read()
"""
    with process(store, code) as one, process(store, code) as two, process(store, code) as three:
        others = [one, two, three]
        assert [line(other) for other in others] == ["ready"] * 3
        store.close(mine)
        for other in others:
            assert other.stdin is not None
            other.stdin.write("\n")
            other.stdin.flush()
        taken = [line(other).split() for other in others]
    assert sorted(map(len, taken)) == [0, 0, 200]
    assert max(taken, key=len) == [f"job-{n}" for n in range(200)]


@pytest.mark.limit(60)
def test_a_key_is_one_job_however_many_ask(store: SQLiteJobStore) -> None:
    """Four processes add the same keys at once."""
    code = """
m = store.open('test'); print('ready', flush=True); sys.stdin.readline()
for n in range(50): print((store.write(m, [new(f'{m}-{n}', key=f'key-{n}')], [], [], []).existing.get(f'{m}-{n}') or new(f'{m}-{n}')).id)
"""
    with process(store, code) as one, process(store, code) as two, process(store, code) as three:
        others = [one, two, three]
        assert [line(other) for other in others] == ["ready"] * 3
        for other in others:
            assert other.stdin is not None
            other.stdin.write("\n")
            other.stdin.flush()
        given = [[line(other) for _ in range(50)] for other in others]
    assert given[0] == given[1] == given[2] and len(set(given[0])) == 50


def test_many_processes_write_at_once(store: SQLiteJobStore) -> None:
    """And threads of this one: nothing is lost."""
    code = "m = store.open('test')\nfor n in range(100): store.write(m, [new(f'{m}-{n}')], [], [], [])\nprint('done')"

    def thread() -> None:
        mine = store.open(TYPE)
        for n in range(100):
            store.write(mine, [new(f"{mine}-{n}")], [], [], [])

    threads = [threading.Thread(target=thread) for _ in range(2)]
    with process(store, code) as one, process(store, code) as two:
        for started in threads:
            started.start()
        assert [line(one), line(two)] == ["done", "done"]
        for started in threads:
            started.join()
    assert len(states(store)) == 400


def test_two_processes_make_the_file_at_once(tmp_path: Path) -> None:
    """One makes it, the other finds it."""
    for n in range(1):
        store = SQLiteJobStore(tmp_path / f"jobs-{n}.db")
        code = "store.write(store.open('test'), [new(sys.argv[2])], [], [], []); print('done')"
        with process(store, code, "a") as one, process(store, code, "b") as two, process(store, code, "c") as three:
            assert [line(other) for other in (one, two, three)] == ["done"] * 3
        assert sorted(states(store)) == ["a", "b", "c"]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_was_written_survives_kill_9(tmp_path: Path, durability: str) -> None:
    """At any moment: every job that was answered is there, with its large parameters, and no file is left behind for ever."""
    path = tmp_path / "jobs.db"
    code = """
store = SQLiteJobStore(sys.argv[1], durability=sys.argv[2], lock_timeout=20)
m = store.open('test')
for n in range(10**6):
    store.write(m, [NewJob(f'{m}-{n}', 'plugin', b'x' * (2_000_000 if n % 3 else 10), 0.0)], [], [], [])
    print(f'{m}-{n}', flush=True)
"""
    seen: "list[str]" = []
    store = SQLiteJobStore(path)
    for n in range(3):
        with process(store, code, durability) as other:
            seen += [line(other) for _ in range(5)]
            time.sleep(0.003 * n)
            other.kill()
            assert other.stdout is not None
            seen += [name for name in other.stdout.read().splitlines(keepends=True) if name.endswith("\n")]
    known = states(store)
    for name in seen:
        payload = store.payload(name.strip())
        assert name.strip() in known and payload is not None and len(payload[0]) in (10, 2_000_000)
    mine = store.open(TYPE)
    assert len(store.claim(mine)) == len(known)


# A fork


def in_child(call: Any) -> int:
    """The exit code of a forked child that makes a call."""
    child = os.fork()
    if not child:
        try:
            call()
            os._exit(0)
        except StoreForkedError:
            os._exit(3)
        except BaseException:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_may_not_use_what_its_parent_had_in_use(store: SQLiteJobStore) -> None:
    """Neither this store, nor another on the same file, not even while a thread of the parent uses it; and the parent keeps its locks."""
    mine = store.open(TYPE)
    with store.database:
        assert in_child(lambda: store.select(TYPE)) == 3
    for call in (
        lambda: store.write(mine, [new("a")], [], [], []),
        lambda: store.claim(mine),
        lambda: SQLiteJobStore(store.path).select(TYPE),
        lambda: store.close(mine),
    ):
        assert in_child(call) == 3
    store.write(mine, [new("b")], [], [], [])
    code = "m = store.open('test'); print(len(store.claim(m)))"
    with process(store, code) as other:
        assert line(other) == "0"


def test_a_store_that_was_not_used_may_be_forked(tmp_path: Path) -> None:
    """As by a server that loads the app first."""
    store = SQLiteJobStore(tmp_path / "jobs.db")
    assert in_child(lambda: store.write(store.open(TYPE), [new("a")], [], [], [])) == 0
    assert states(store) == {"a": "pending"}


# Faults


def refuses(store: SQLiteJobStore, kind: "type[JobStoreError]", within: float = 1.0) -> JobStoreError:
    """Its first use raises this, at once, and names the file and a remedy."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        store.open(TYPE)
    assert (
        time.monotonic() - began < within
        and store.path in str(caught.value)
        and caught.value.remedy in str(caught.value)
    )
    return caught.value


@pytest.mark.parametrize("content", [b"", b"not a database at all", b"SQLite format 3\0" + b"x" * 5000])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    """It is not recreated."""
    path = tmp_path / "jobs.db"
    path.write_bytes(content)
    path.chmod(0o600)
    refuses(SQLiteJobStore(path), StoreDamagedError)
    assert path.read_bytes() == content


def test_damage_that_comes_later(store: SQLiteJobStore) -> None:
    """A page in the middle is overwritten: the error is named, and the store does not go on as if nothing were."""
    mine = store.open(TYPE)
    store.write(mine, [new(f"job-{n}") for n in range(1000)], [], [], [])
    store.close(mine)
    store.database.disconnect()
    size = os.path.getsize(store.path)
    with open(store.path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))
    with pytest.raises(StoreDamagedError):
        store.select(TYPE, limit=2000)
        store.open(TYPE)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    """Even if it is a database."""
    path = tmp_path / "jobs.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE contacts(name)")
    path.chmod(0o600)
    refuses(SQLiteJobStore(path), StoreDamagedError)


def test_a_file_that_goes_away_is_noticed(store: SQLiteJobStore) -> None:
    """Nothing is written where nothing will read it; also when only its locks are removed, which would let two managers run one job."""
    mine = store.open(TYPE)
    os.rename(f"{store.path}-locks", f"{store.path}-moved")
    with pytest.raises(StoreLockingError):
        store.write(mine, [new("a")], [], [], [])
    os.rename(f"{store.path}-moved", f"{store.path}-locks")
    os.rename(store.path, f"{store.path}-moved")
    with pytest.raises(StoreDamagedError):
        store.write(mine, [new("a")], [], [], [])
    assert not os.path.exists(store.path)


def test_a_file_that_was_removed_after_a_death_is_not_made_again(store: SQLiteJobStore) -> None:
    """Its log is still there, and SQLite would put pages of it into a new file."""
    code = "store.write(store.open('test'), [new('a')], [], [], []); os._exit(9)"
    with process(store, code) as other:
        other.wait()
    os.remove(store.path)
    refuses(store, StoreDamagedError)
    assert not os.path.exists(store.path)


def test_a_newer_schema_is_refused(store: SQLiteJobStore) -> None:
    """And left as it is."""
    store.close(store.open(TYPE))
    with store.database as db:
        db.execute("PRAGMA user_version = 99")
    store.database.disconnect()
    before = Path(store.path).read_bytes()
    refuses(SQLiteJobStore(store.path), StoreVersionError)
    assert Path(store.path).read_bytes() == before


def test_an_older_schema_is_migrated_with_a_copy(tmp_path: Path) -> None:
    """In one transaction: a migration that fails changes nothing."""
    path, now = str(tmp_path / "jobs.db"), VERSION
    make_database(path)
    db = sqlite3.connect(path, isolation_level=None)
    colour, size = "ALTER TABLE jobs ADD COLUMN colour TEXT", "ALTER TABLE jobs ADD COLUMN size TEXT"
    with pytest.raises(sqlite3.Error):
        migrate(db, path, {now: [colour, "nonsense"]}, now + 1)
    assert db.execute("PRAGMA user_version").fetchone() == (now,)
    assert "colour" not in str(db.execute("SELECT sql FROM sqlite_master").fetchall())
    assert migrate(db, path, {now: [colour], now + 1: [size]}, now + 2) == now
    assert "colour" in str(db.execute("SELECT sql FROM sqlite_master").fetchall())
    db.close()
    copy = sqlite3.connect(f"{path}.version-{now}")
    assert copy.execute("PRAGMA user_version").fetchone() == (now,)
    assert copy.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
    assert os.stat(f"{path}.version-{now}").st_mode & 0o777 == 0o600
    copy.close()


def as_version_1(store: SQLiteJobStore) -> None:
    """Make the file one that version 1 of the schema has."""
    with store.database as db:
        db.executescript("ALTER TABLE managers DROP COLUMN workers; PRAGMA user_version = 1")
    store.database.disconnect()


def test_a_store_of_version_1_is_opened(store: SQLiteJobStore) -> None:
    """Its jobs are there, and its managers show their workers from now on; the copy has what was there just before."""
    copied = []
    for job_id in ("a", "b"):  # the second time after an older package has used the file again
        store.write(store.open(TYPE), [new(job_id)], [], [], [])
        as_version_1(store)
        later = SQLiteJobStore(store.path)
        later.show_workers(other := later.open(TYPE), "[]")
        assert later.shown_workers()[other] == "[]"
        with sqlite3.connect(f"{store.path}.version-1") as copy:
            copied.append([found for (found,) in copy.execute("SELECT id FROM jobs ORDER BY place")])
        copy.close()
        later.database.disconnect()
    assert copied == [["a"], ["a", "b"]] and list(states(later)) == ["b", "a"]


def test_only_managers_that_are_alive_show_workers(store: SQLiteJobStore) -> None:
    """Not those that were closed, nor those whose process was killed, also when a child that it forked lives on."""
    code = (
        "import os, sys, time; from cjm_worker_protocols.integrations.store import SQLiteJobStore; store = SQLiteJobStore(sys.argv[1]); "
        "store.show_workers(store.open('theirs'), '[1]'); child = os.fork(); print(child, flush=True) if child else None; time.sleep(60)"
    )
    mine, closed = store.open(TYPE), store.open(TYPE)
    for manager in (mine, closed):
        store.show_workers(manager, "[]")
    store.close(closed)
    other = subprocess.Popen([sys.executable, "-c", code, store.path], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    child = int(other.stdout.readline())
    try:
        assert list(store.shown_workers().values()) == ["[]", "[1]"]
        other.kill()
        other.wait()
        assert os.path.exists(f"/proc/{child}") and store.shown_workers() == {mine: "[]"}
    finally:
        os.kill(child, signal.SIGKILL)
        other.stdout.close()


def test_what_others_may_read_is_refused(store: SQLiteJobStore) -> None:
    """New files are private, with all that lies beside them."""
    mine = store.open(TYPE)
    store.write(mine, [NewJob("a", "plugin", b"x" * 2_000_000, 0.0)], [], [], [])
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path(store.path).parent.rglob("*")}
    assert all(not mode & 0o077 for mode in modes.values()), modes
    store.close(mine)
    store.database.disconnect()
    os.chmod(store.path, 0o640)
    refuses(SQLiteJobStore(store.path), StorePermissionError)
    os.chmod(store.path, 0o600)
    Path(f"{store.path}-wal").touch(0o644)  # another user might have put jobs into it
    refuses(SQLiteJobStore(store.path), StorePermissionError)
    os.remove(f"{store.path}-wal")
    os.chmod(f"{store.path}-files", 0o755)
    mine = store.open(TYPE)
    with pytest.raises(StorePermissionError):
        store.write(mine, [NewJob("b", "plugin", b"x" * 2_000_000, 0.0)], [], [], [])
    assert states(store) == {"a": "pending"}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs more rights")
@pytest.mark.parametrize("name", ["-wal", "-files"])
def test_what_lies_beside_it_belongs_to_the_same_user(name: str, store: SQLiteJobStore) -> None:
    """Even the superuser unpickles nothing that another user can have written there."""
    store.close(store.open(TYPE))
    store.database.disconnect()
    (Path.mkdir if name == "-files" else Path.touch)(path := Path(store.path + name), 0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(StorePermissionError, match="65534"):
        store.write(store.open(TYPE), [NewJob("a", "plugin", b"x" * 2_000_000, 0.0)], [], [], [])


def test_a_file_that_another_program_locks(store: SQLiteJobStore) -> None:
    """An error after lock_timeout; then it goes on."""
    store = SQLiteJobStore(store.path, lock_timeout=0.2)
    mine = store.open(TYPE)
    with sqlite3.connect(store.path, isolation_level=None) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLockedError):
            store.write(mine, [new("a")], [], [], [])
        assert states(store) == {}
        shell.execute("ROLLBACK")
    store.write(mine, [new("a")], [], [], [])
    assert states(store) == {"a": "pending"}


def test_a_full_disk(store: SQLiteJobStore) -> None:
    """The batch is not written, what was there is, and it goes on when there is room."""
    mine = store.open(TYPE)
    store.write(mine, [new("a")], [], [], [])
    with store.database as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(StoreFullError):
        store.write(mine, [NewJob(f"b-{n}", "plugin", b"x" * 9000, 0.0) for n in range(20)], [], [], [])
    assert states(store) == {"a": "pending"}
    store.write(mine, [], [], [ended("a")], [])
    with store.database as db:
        db.execute("PRAGMA max_page_count = 1000000")
    store.write(mine, [new("b")], [], [], [])
    assert states(store) == {"a": "completed", "b": "pending"}


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m,mode=700 tmpfs {folder} 2>/dev/null"):
        pytest.skip("mounting a file system needs more rights")
    try:
        store = SQLiteJobStore(folder / "jobs.db")
        mine, count = store.open(TYPE), 0
        for size in (20_000, 2_000_000):
            with pytest.raises((StoreFullError, JobStoreError)) as caught:
                while count < 200:
                    store.write(mine, [NewJob(f"job-{count}", "plugin", b"x" * size, 0.0)], [], [], [])
                    count += 1
            assert isinstance(caught.value, StoreFullError)
        known = states(store)
        assert len(known) == count and all(store.payload(job_id) for job_id in known)
        assert not os.path.exists(store.database.files.folder) or not os.listdir(store.database.files.folder)
        store.database.disconnect()
    finally:
        assert not os.system(f"umount -l {folder}")


def test_a_read_only_file(tmp_path: Path) -> None:
    """Another user may not write it, or may not write beside it."""
    for path, mode in (("file", 0o400), ("folder", 0o600)):
        folder = tmp_path / path
        folder.mkdir()
        store = SQLiteJobStore(folder / "jobs.db")
        store.close(store.open(TYPE))
        store.database.disconnect()
        os.chmod(store.path, mode)
        user = 65534 if os.geteuid() == 0 else os.geteuid()
        if os.geteuid() == 0:
            for each in folder.iterdir():
                os.chown(each, user, user)
            os.chown(folder, *((user, user) if path == "file" else (0, 0)))
            for parent in folder.parents:
                if (
                    parent.stat().st_uid == 0
                    and parent.stat().st_mode & 0o005 != 0o005
                    and str(parent).startswith(tempfile.gettempdir())
                ):
                    os.chmod(parent, 0o755)
        os.chmod(folder, 0o500 if path == "folder" and os.geteuid() else 0o755)
        code = f"""
import os; os.geteuid() == 0 and os.setuid({user})
try: store.write(store.open('test'), [new('a')], [], [], []); print('written')
except Exception as e: print(type(e).__name__)
"""
        with process(store, code) as other:
            assert line(other) == StoreReadOnlyError.__name__, path


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """Neither does a file count as one, and nothing is made."""
    (tmp_path / "file").touch()
    for folder in ("missing", "file"):
        assert "create the folder" in str(refuses(SQLiteJobStore(tmp_path / folder / "jobs.db"), StoreFolderError))
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_system_without_locks(store: SQLiteJobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel says it on some network file systems."""
    import fcntl

    def lockf(*arguments: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert "local disk" in str(refuses(store, StoreLockingError))
    assert not os.path.exists(store.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs more rights")
def test_a_read_only_file_system(tmp_path: Path) -> None:
    """With a store on it, and without."""
    (folder := tmp_path / "mounted").mkdir()
    if os.system(f"mount -t tmpfs -o size=1m,mode=700 tmpfs {folder} 2>/dev/null"):
        pytest.skip("mounting a file system needs more rights")
    try:
        store = SQLiteJobStore(folder / "jobs.db")
        store.close(store.open(TYPE))
        code = f"""
assert not os.system("mount -o remount,ro {folder}")
for path in (sys.argv[1], sys.argv[1] + "2"):
    try: SQLiteJobStore(path).open('test')
    except Exception as e: print(type(e).__name__)
"""
        locks = store.database.locks
        locks.close()
        with process(store, code) as other:
            assert [line(other), line(other)] == [StoreReadOnlyError.__name__] * 2
    finally:
        assert not os.system(f"umount -l {folder}")


def test_a_file_system_without_shared_memory(store: SQLiteJobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's locks of another kind stand for it: with them, it cannot map its log's index."""
    connect = sqlite3.connect

    def without(path: str, **more: Any) -> sqlite3.Connection:
        return connect(f"file:{path}?vfs=unix-dotfile", uri=True, **more)

    monkeypatch.setattr(sqlite3, "connect", without)
    assert "local disk" in str(refuses(store, StoreLockingError))


@pytest.mark.parametrize(
    "text, kind", [("database disk image is malformed", StoreDamagedError), ("locking protocol", StoreLockingError)]
)
def test_errors_of_sqlite_have_names(text: str, kind: "type[JobStoreError]") -> None:
    """Those that are hard to make."""
    assert type(store_error("f", sqlite3.OperationalError(text))) is kind


# What is kept


def test_the_file_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended jobs are removed by count, with their files, and space is used again."""
    store = SQLiteJobStore(tmp_path / "jobs.db", keep_ended=100)
    monkeypatch.setattr(Retention, "EVERY", 100)
    mine, sizes, log = store.open(TYPE), [], tmp_path / "jobs.db-wal"
    for n in range(30):
        ids = [f"job-{n}-{i}" for i in range(50)]
        large = [NewJob(f"large-{n}", "plugin", b"x" * 2_000_000, 0.0)]
        store.write(mine, [new(job_id) for job_id in ids] + large, [], [], [])
        store.write(
            mine,
            [],
            [],
            [ended(job_id, result=b"r" * 2000) for job_id in (*ids, f"large-{n}")],
            [JobChunk(ids[0], 0, b"c" * 2000, 5)],
        )
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path != log))
    assert len(states(store)) <= 200 and max(sizes[15:]) < 1.5 * max(sizes[:15]) and log.stat().st_size < 20_000_000
    assert store.prune(keep_ended=5) > 90 and len(states(store)) == 5 and store.prune(keep_days=0) == 5
    with store.database as db:
        assert db.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
    assert not os.listdir(store.database.files.folder)


def test_uploads_stay_for_whichever_job_repeats_theirs(tmp_path: Path) -> None:
    """Also when the command line retries it, and whatever the type of its workers; then they go."""
    store = SQLiteJobStore(tmp_path / "jobs.db")
    (root := Path(store.uploads)).mkdir()
    folder, reading = make_folder(root), make_folder(root)  # that of a request whose job is still to be started
    params = pickle.dumps({"audio": folder / "0" / "a.wav"})
    store.write(store.open("another type"), [new("first")._replace(params=params)], [], [], [])
    add_owner(folder, "first")
    (job,) = store.read("another type", ["first"])
    assert retry_job(store, job, "second") and store.prune() == 0
    store.forget(["first"])
    assert store.prune() == 0 and owners_of(folder) == ["first", "second"]
    store.forget(["second"])
    assert store.prune() == 0 and not folder.exists() and reading.exists()


def test_uploads_of_requests_that_never_became_jobs_are_removed(tmp_path: Path) -> None:
    """But not those of a job whose process died before it was noted as their owner, what others write, nor what people put there."""
    store = SQLiteJobStore(tmp_path / "jobs.db")
    (kept := (root := Path(store.uploads)) / "kept").mkdir(parents=True)
    (root / ".DS_Store").touch()
    lost, named, slow = (make_folder(root) for _ in range(3))
    (slow / "0").mkdir()
    (slow / "0" / "a.wav").touch()
    for path in (lost, named, slow, slow / "0", kept):
        os.utime(path, (0, 0))
    mine, params = store.open(TYPE), pickle.dumps([named / "0" / "a.wav"])
    store.write(mine, [NewJob("job", "plugin", params, 0.0)], [], [], [])
    assert store.prune() == 0 and [path.exists() for path in (lost, named, slow)] == [False, True, True]
    os.utime(slow / "0" / "a.wav", (0, 0))
    store.write(mine, [NewJob("large", "plugin", pickle.dumps([slow, b"x" * 2_000_000]), 0.0)], [], [], [])
    assert store.prune() == 0 and slow.exists()  # a pickle in a file is not looked into
    store.forget(["job", "large"])
    assert store.prune() == 0 and sorted(os.listdir(root)) == [".DS_Store", "kept"]


def test_files_that_no_job_names_are_removed(tmp_path: Path) -> None:
    """But not those of a job, however old, nor young ones, which may belong to a job that is being written."""
    store = SQLiteJobStore(tmp_path / "jobs.db")
    store.write(store.open(TYPE), [NewJob("large", "plugin", b"x" * 2_000_000, 0.0)], [], [], [])
    files = store.database.files
    (kept,) = os.listdir(files.folder)
    lost, young = files.write(b"lost"), files.write(b"young")
    for name in (kept, lost):
        os.utime(os.path.join(files.folder, name), (0, 0))
    assert store.prune() == 0 and set(os.listdir(files.folder)) == {kept, young}


def test_open_jobs_are_never_removed(store: SQLiteJobStore) -> None:
    """However old."""
    mine = store.open(TYPE)
    store.write(mine, [NewJob("old", "plugin", b"", 0.0)], [JobMove("old", "running", 1, 0.0)], [], [])
    assert store.prune(0, 0) == 0 and states(store) == {"old": "running"}


def test_large_ones_lie_beside_the_database(store: SQLiteJobStore) -> None:
    """And go with their row; one that is gone is a named error."""
    mine, large = store.open(TYPE), b"x" * (SideFiles.LIMIT + 1)
    store.write(
        mine,
        [NewJob("a", "plugin", large, 0.0), NewJob("b", "plugin", large[1:], 0.0)],
        [],
        [ended("b", result=large)],
        [],
    )
    folder = Path(store.database.files.folder)
    assert (
        len(list(folder.iterdir())) == 2
        and store.payload("a") == (large, None)
        and store.payload("b") == (large[1:], large)
    )
    assert os.path.getsize(store.path) < 4 * SideFiles.LIMIT
    assert retry_job(store, *store.read(TYPE, ["a"]), "c") and len(list(folder.iterdir())) == 3
    store.forget(["a", "b"])
    assert len(list(folder.iterdir())) == 1 and store.payload("c") == (large, None)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(StoreFileLostError, match="of job c"):
        store.payload("c")


def test_a_retried_job_goes_to_a_living_manager(store: SQLiteJobStore) -> None:
    """With the same owner and no key, whatever state the old one is in."""
    mine = store.open(TYPE)
    store.write(mine, [new("a", key="k", owner="ada", priority=3, options='{"retries": 2}')], [], [], [])
    store.write(mine, [], [], [ended("a", "failed", None)], [])
    (old,) = store.read(TYPE, ["a"])
    assert retry_job(store, old, "b") and not retry_job(store, old._replace(id="unknown"), "c")
    (job,) = store.claim(mine)
    assert (job.id, job.retried_from, job.owner, job.key, job.priority, job.options) == (
        "b",
        "a",
        "ada",
        None,
        3,
        '{"retries": 2}',
    )
    assert store.write(mine, [], [], [ended("b")], []).refused == [] and store.claim(mine) == []


def test_worker_types_are_apart(store: SQLiteJobStore) -> None:
    """A manager sees jobs of its own type only, and takes over no others."""
    mine, other = store.open(TYPE), store.open("other")
    store.write(mine, [new("a", key="k")], [], [], [])
    assert store.write(other, [new("b", key="k")], [], [], []).existing == {}
    store.close(mine)
    assert (
        store.claim(other) == []
        and store.read("other", ["a"]) == []
        and [job.id for job in store.select("other")] == ["b"]
    )


def test_the_same_id_twice_is_refused(store: SQLiteJobStore) -> None:
    """And the rest of the batch is written."""
    mine = store.open(TYPE)
    store.write(mine, [new("a")], [], [], [])
    answer = store.write(mine, [new("a"), new("b"), new("b")], [], [], [])
    assert (
        answer.refused == ["a", "b"]
        and list(answer.places) == ["b"]
        and states(store) == {"a": "pending", "b": "pending"}
    )


@pytest.mark.parametrize(
    "setting",
    [{"durability": "none"}, {"keep_ended": -1}, {"keep_days": "x"}, {"keep_chunks": 1.5}, {"lock_timeout": None}],
)
def test_settings_are_checked(setting: "dict[str, Any]") -> None:
    """At once."""
    with pytest.raises(ConfigError):
        SQLiteJobStore("jobs.db", **setting)
    with pytest.raises(ConfigError):
        SQLiteJobStore(5)  # type: ignore[arg-type]


def test_it_is_a_job_store(store: SQLiteJobStore) -> None:
    """As `isinstance` sees it."""
    assert isinstance(store, JobStoreProtocol) and StoredJob._fields[0] == "id"
