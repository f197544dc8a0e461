"""What workers use: real processes that allocate, spin, fork, die and wait to be reaped; containers; threads; the manager end to end."""

import gc
import html.parser
import importlib
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Gate, end, first_chunk, gate, gone, manager, nothing_left, run, until, wait_until  # noqa: F401
from nvml_double import Card, Library
from prometheus_client.parser import text_string_to_metric_families

from cjm_worker_protocols.conformance import check
from cjm_worker_protocols.extensions.protocols import UNSET, ResourceManagerProtocol
from cjm_worker_protocols.integrations.resources import (
    ClearingAdapter,
    Gpu,
    Memory,
    Nvml,
    Peak,
    Process,
    ProcessResourceManager,
    Snapshot,
    Usage,
    Worker,
    container_memory,
    gpu,
    limits,
    manager as managing,
    memory_now,
    meter,
    processes,
)

MiB = 2**20
LINUX = sys.platform == "linux"


@contextmanager
def python(source: str, **popen: Any) -> "Iterator[subprocess.Popen[str]]":
    """A process that runs some Python and says when it is ready; it and all below it are killed at the end."""
    command = [sys.executable, "-S", "-c", source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **popen) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().strip() == "ready"
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def proceed(process: "subprocess.Popen[str]", answer: str = "ready") -> None:
    """Let a process go on, and wait for what it says."""
    assert process.stdin is not None and process.stdout is not None
    print(file=process.stdin, flush=True)
    assert process.stdout.readline().strip() == answer


def measured(rm: ProcessResourceManager, pid: int) -> Usage:
    """Measure, and look at one worker."""
    rm.sample()
    worker = rm.worker(pid)
    assert worker is not None
    return worker.usage


def probe(rm: ProcessResourceManager, pid: int) -> "dict[str, Any] | None":
    """What the kit reads."""
    worker = rm.worker(pid)
    return None if worker is None else asdict(worker)


SLEEP = "import sys; print('ready', flush=True); sys.stdin.read()"
ALLOCATE = """
import sys
print("ready", flush=True)
sys.stdin.readline()
held = b"x" * (64 * 2**20)
print("ready", flush=True)
sys.stdin.read()
"""
FORK = """
import os, sys, time
held = b"x" * (64 * 2**20)
if os.fork() == 0:
    if os.fork() == 0:
        print("ready", flush=True)
        time.sleep(1000)
    time.sleep(1000)
sys.stdin.read()
"""
ORPHAN = """
import os, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        os.read(0, 1)
        print("ready", flush=True)
        time.sleep(1000)
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(1000)
"""
SPIN = """
import subprocess, sys, time
print("ready", flush=True)
for line in sys.stdin:
    begin = time.process_time()
    while time.process_time() < begin + 0.4: pass
    print("ready", flush=True)
"""
SHORT = """
import subprocess, sys
print("ready", flush=True)
child = "import time\\nwhile time.process_time() < 0.5: pass"
for line in sys.stdin:
    subprocess.run([sys.executable, "-S", "-c", child])
    print("ready", flush=True)
"""
ZOMBIE = """
import os, sys, time
if os.fork() == 0: os._exit(0)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
print("ready", flush=True)
time.sleep(1000)
"""


# What a process uses


@pytest.mark.parametrize("deep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_kit_finds_nothing(deep: bool) -> None:
    """Every check is made, and passed; nothing is waived."""
    report = check(ProcessResourceManager, ResourceManagerProtocol, probe=probe, deep=deep)
    assert report.counts["passed"] == len(report.outcomes) and not report.findings, report


def test_memory_that_is_allocated_is_seen() -> None:
    """64 MiB more are 64 MiB more, in rss and in pss."""
    with python(ALLOCATE) as process, ProcessResourceManager(pss_interval=0) as rm:
        rm.register_worker(process.pid, "test")
        before = measured(rm, process.pid)
        proceed(process)
        after = measured(rm, process.pid)
    assert before.rss and after.rss and 60 * MiB < after.rss - before.rss < 100 * MiB
    if LINUX:
        assert before.pss and after.pss and 60 * MiB < after.pss - before.pss < 100 * MiB
        assert after.pss <= after.rss


def test_numbers_are_those_of_psutil() -> None:
    """rss, threads and CPU time are those that psutil reports of the same processes."""
    with python(FORK) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        usage = measured(rm, process.pid)
        theirs = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert usage.processes == len(theirs) == 3
        assert usage.threads == sum(p.num_threads() for p in theirs)
        assert usage.rss == pytest.approx(sum(p.memory_info().rss for p in theirs), rel=0.05)
        worker = rm.worker(process.pid)
        assert worker is not None and {p.pid for p in worker.processes} == {p.pid for p in theirs}
        assert worker.processes[0].pid == process.pid


@pytest.mark.skipif(not LINUX, reason="only Linux reports pss")
def test_shared_pages_count_once_in_pss_and_for_each_in_rss() -> None:
    """A fork shares 64 MiB: three processes have 192 MiB in use, and 64 MiB together."""
    with python(FORK) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        usage = measured(rm, process.pid)
    assert usage.rss and usage.rss > 180 * MiB
    assert usage.pss and 60 * MiB < usage.pss < 110 * MiB


def test_pss_is_read_at_its_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings of pss the last one is shown, and nothing is read."""
    read: "list[int]" = []
    real = meter.read_pss
    monkeypatch.setattr(meter, "read_pss", lambda pid: (read.append(pid), real(pid))[1])
    with python(SLEEP) as process, ProcessResourceManager(pss_interval=1000) as rm:
        rm.register_worker(process.pid, "test")
        first = measured(rm, process.pid)
        assert measured(rm, process.pid).pss == first.pss and read == [process.pid]


def test_cpu_time_of_a_busy_and_of_a_lazy_worker() -> None:
    """What spins uses CPU, what sleeps uses none; percent and seconds fit together."""
    with python(SPIN) as busy, python(SLEEP) as lazy, ProcessResourceManager() as rm:
        for process in (busy, lazy):
            rm.register_worker(process.pid, "test")
        first = measured(rm, busy.pid)
        assert (first.cpu_percent, first.cpu_seconds) == (None, 0)
        proceed(busy)
        usage, idle = measured(rm, busy.pid), rm.worker(lazy.pid)
    assert usage.cpu_seconds == pytest.approx(0.4, abs=0.15) and usage.cpu_percent and usage.cpu_percent > 1
    assert idle is not None and idle.usage.cpu_seconds is not None and idle.usage.cpu_seconds < 0.1


def test_cpu_time_of_a_child_that_came_and_went() -> None:
    """A child that began and ended between two measurements is counted."""
    with python(SHORT) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        rm.sample()
        proceed(process)
        usage = measured(rm, process.pid)
    assert usage.processes == 1 and usage.cpu_seconds == pytest.approx(0.55, abs=0.2)


def test_cpu_time_never_falls_and_never_exceeds_the_cores() -> None:
    """Children that die take nothing with them, and measurements in a row give the last value."""
    with python(SHORT) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        rm.sample()
        assert process.stdin is not None
        process.stdin.write("\n\n")
        process.stdin.flush()
        ends: "list[str]" = []
        reading = threading.Thread(target=lambda: ends.extend(process.stdout.readline() for _ in range(2)))  # type: ignore[union-attr]
        reading.start()
        wait_until(lambda: rm.sample() or len(ends) == 2, 60)
        reading.join()
        worker = rm.worker(process.pid)
    assert worker is not None
    seconds = [usage.cpu_seconds for usage in worker.history]
    assert None not in seconds and seconds == sorted(seconds) and seconds[-1] > 0.2  # type: ignore[type-var, operator]
    assert all(u.cpu_percent is None or 0 <= u.cpu_percent <= 100 * (os.cpu_count() or 1) for u in worker.history)


# The tree


def test_an_orphan_belongs_to_the_session_of_its_worker() -> None:
    """A grandchild whose parent has ended is still the worker's."""
    with python(ORPHAN) as process, ProcessResourceManager() as rm:
        proceed(process)
        rm.register_worker(process.pid, "test")
        assert measured(rm, process.pid).processes == 2


def test_a_worker_below_a_worker_is_counted_once() -> None:
    """This process is a worker too: what is below it and a worker is not part of it."""
    with python(FORK) as process, ProcessResourceManager() as rm:
        rm.register_worker(os.getpid(), "app")
        alone = measured(rm, os.getpid())
        rm.register_worker(process.pid, "test")
        rm.sample()
        app, worker = rm.snapshot().workers
    assert alone.processes is not None and app.usage.processes == alone.processes - 3 and worker.usage.processes == 3
    assert not {p.pid for p in app.processes} & {p.pid for p in worker.processes}


def test_a_zombie_below_a_worker_is_a_process_that_uses_nothing() -> None:
    """A child that was not waited for is counted, and pss stays known."""
    with python(ZOMBIE) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        usage = measured(rm, process.pid)
        worker = rm.worker(process.pid)
    assert worker is not None and [p.ended for p in worker.processes] == [False, True]
    assert usage.processes == 2 and usage.rss and (usage.pss or not LINUX)


def test_the_machine_is_looked_at_once_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many workers there are, there is one scan; and none without workers that can be measured."""
    scans: "list[int]" = []
    real = meter.scan
    monkeypatch.setattr(meter, "scan", lambda *args: (scans.append(1), real(*args))[1])
    with python(SLEEP) as one, python(SLEEP) as other, ProcessResourceManager() as rm:
        rm.sample()
        rm.register_worker(2**22 + 1, "elsewhere")
        rm.sample()
        assert scans == []
        for process in (one, other):
            rm.register_worker(process.pid, "test")
        rm.sample()
        assert scans == [1]


def test_unrelated_processes_are_not_read_again_and_children_are_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second measurement reads the processes of workers only.

    The next one sees a new child, and an unrelated process that becomes a worker.
    """
    if not LINUX:
        pytest.skip("only Linux has a mark that tells two processes of one pid apart")
    read: "list[int]" = []
    real = processes.node_procfs
    monkeypatch.setattr(processes, "node_procfs", lambda pid, mark: (read.append(pid), real(pid, mark))[1])
    with python(STARTS_A_CHILD) as worker, python(FORK) as unrelated, ProcessResourceManager() as rm:
        assert worker.stdin and worker.stdout
        rm.register_worker(worker.pid, "test")
        rm.sample()
        assert unrelated.pid in read and len(read) > 3
        read.clear()
        rm.sample()
        assert worker.pid in read and unrelated.pid not in read
        worker.stdin.write("go\n")
        worker.stdin.flush()
        child = int(worker.stdout.readline())
        assert [p.pid for p in rm.snapshot().workers[0].processes] == [worker.pid, child]
        rm.register_worker(unrelated.pid, "test")
        assert [w.usage.processes for w in rm.snapshot().workers] == [2, 3]
        read.clear()
        later = types.SimpleNamespace(monotonic=lambda: time.monotonic() + processes.UnrelatedProcesses.KEPT)
        monkeypatch.setattr(processes, "time", later)
        rm.sample()
        assert 1 in read


STARTS_A_CHILD = """
import subprocess, sys
print("ready", flush=True)
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
child.wait()
"""


def test_psutil_and_procfs_agree() -> None:
    """Both ways to read a process report the same, so that what is tested here holds where there is no /proc."""
    if not LINUX:
        pytest.skip("there is no /proc to compare with")
    with python(FORK) as process:
        one, other = processes.read_procfs(process.pid), processes.read_psutil(process.pid)
        assert one._replace(started=0.0, rss=0, cpu=0.0, waited=0.0) == other._replace(started=0.0, rss=0, cpu=0.0, waited=0.0)
        assert one.rss == pytest.approx(other.rss, rel=0.05) and one.cpu == pytest.approx(other.cpu, abs=0.05)
        assert processes.node_procfs(process.pid, 0)[:3] == processes.node_psutil(process.pid, 0)[:3]
    nodes = [lambda pid, node=node: node(pid, 0) for node in (processes.node_procfs, processes.node_psutil)]
    for read in (processes.read_procfs, processes.read_psutil, *nodes):
        with pytest.raises(OSError):
            read(2**22 + 1)


def test_it_works_on_psutil_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other systems than Linux run."""
    monkeypatch.setattr(processes.sys, "platform", "darwin")
    for module in (managing, meter):
        monkeypatch.setattr(module, "read_process", processes.read_psutil)
    with ProcessResourceManager() as rm:
        with python(FORK) as process:
            rm.register_worker(process.pid, "test")
            usage = measured(rm, process.pid)
            assert usage.processes == 3 and usage.threads == 3 and usage.rss and usage.rss > 180 * MiB
        (lost,) = rm.snapshot().lost
        assert lost.pid == process.pid


# Identity and death


def test_a_worker_that_died_is_reaped() -> None:
    """It is no worker any more, it is shown as lost with what it used last, and its end may be reported later."""
    with ProcessResourceManager() as rm:
        with python(SLEEP) as process:
            rm.register_worker(process.pid, "test")
            rm.sample()
        snapshot = rm.snapshot()
        assert snapshot.workers == () and [w.pid for w in snapshot.lost] == [process.pid]
        assert snapshot.lost[0].usage.rss and "lost" in snapshot.table()
        rm.update_worker_state(process.pid, status="running")
        assert rm.worker(process.pid) is None
        rm.unregister_worker(process.pid)
        assert rm.snapshot().lost == ()


def test_a_zombie_is_a_dead_worker() -> None:
    """A worker that has ended, and that was not waited for, is dropped too."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        assert rm.snapshot().workers == ()
    process.wait()


def test_a_pid_that_is_used_again_is_not_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process with the pid of a worker: the worker has ended, and nothing is measured."""
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        real = processes.read_process
        monkeypatch.setattr(managing, "read_process", lambda pid: real(pid)._replace(started=1.0))  # the one before had this pid
        rm.register_worker(process.pid, "before")
        monkeypatch.undo()
        snapshot = rm.snapshot()
        assert snapshot.workers == () and snapshot.lost[0].usage == Usage()
        rm.register_worker(process.pid, "after")
        (worker,) = rm.snapshot().workers
        assert worker.worker_type == "after" and worker.usage.rss


LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

if os.access(LAST_PID, os.W_OK):  # only root can make Linux use a pid again, and not in every container

    def test_a_real_pid_that_is_used_again() -> None:
        """The kernel itself hands out the same pid once more, unless another process gets it first."""
        assert any(used_again() for _ in range(20)), "the pid was never used again"

    def used_again() -> bool:
        """One try."""
        with ProcessResourceManager() as rm:
            with python(SLEEP) as process:
                pid = process.pid
                rm.register_worker(pid, "before")
                rm.sample()
            time.sleep(0.02)  # starts are counted in hundredths of a second
            for _ in range(3):
                LAST_PID.write_text(str(pid - 1))
                with python(SLEEP) as process:
                    if process.pid == pid:
                        snapshot = rm.snapshot()
                        assert snapshot.workers == () and [w.worker_type for w in snapshot.lost] == ["before"]
                        return True
        return False

    def test_an_unrelated_process_is_not_mistaken_for_another_of_its_pid() -> None:
        """A later process with its pid is read again, since the kernel gives its folder another number."""
        assert any(read_again() for _ in range(20)), "the pid was never used again"

    def read_again() -> bool:
        """One try."""
        with python(SLEEP) as process:
            pid, marks = process.pid, processes.process_marks()
            assert pid not in processes.scan(marks)
        for _ in range(3):
            LAST_PID.write_text(str(pid - 1))
            with python(SLEEP) as process:
                if process.pid == pid:
                    assert pid in processes.scan(marks)
                    return True
        return False


def test_a_pid_that_no_process_has_is_kept_and_unknown() -> None:
    """The contract asks for it; nothing is ever known of it."""
    with ProcessResourceManager() as rm:
        rm.register_worker(2**22 + 1, "elsewhere")
        rm.update_worker_state(2**22 + 1, status="running", plugin_id="p")
        (worker,) = rm.snapshot().workers
        assert worker.status == "running" and worker.usage == Usage() and rm.peaks == {}


def test_when_nothing_can_be_read_no_worker_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free descriptor nothing can be read: a worker stays, and is unknown, until something can be read again."""
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")

        def full(*_: Any) -> Any:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(meter, "scan", full)
            patched.setattr(meter, "read_process", full)
            usage = measured(rm, process.pid)
        assert usage.time and (usage.rss, usage.cpu_percent, usage.processes) == (None, None, None)
        assert measured(rm, process.pid).rss


def test_what_may_not_be_read_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of the tree that may not be read makes the sum unknown, not smaller."""
    with python(FORK) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        real = meter.read_pss
        monkeypatch.setattr(meter, "read_pss", lambda pid: real(pid) if pid == process.pid else None)
        usage = measured(rm, process.pid)
    assert usage.pss is None and usage.rss


@pytest.mark.skipif(not LINUX, reason="only Linux reports pss")
def test_processes_of_another_user_are_unknown() -> None:
    """A user who is not root measures a process of root: rss is public, pss is not."""
    other, (reader, writer) = os.getpid() if os.geteuid() == 0 else 1, os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            with ProcessResourceManager() as rm:
                rm.register_worker(other, "test")
                rm.sample()
                os.write(writer, repr([(w.processes[0].rss is not None, w.usage.pss) for w in rm.snapshot().workers]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        assert said.read() == "[(True, None)]"
    os.waitpid(child, 0)


# What is reported


def test_omitted_stays_none_clears_and_idle_has_no_job() -> None:
    """The three rules of clearing."""
    with ProcessResourceManager() as rm:
        rm.register_worker(2**22 + 1, "test")
        plugin = dict(plugin_name="P", plugin_id="p", loaded_plugin_resource="r")
        state: "dict[str, Any]" = dict(status="running", job_id="j", **plugin, config={"a": 1})
        rm.update_worker_state(2**22 + 1, **state)
        for field in state:
            rm.update_worker_state(2**22 + 1, **{field: state[field]})
        known = probe(rm, 2**22 + 1)
        assert known and {field: known[field] for field in state} == state
        rm.update_worker_state(2**22 + 1, status="idle", plugin_id=None)
        known = probe(rm, 2**22 + 1)
        assert known and {field: known[field] for field in state} == {**state, "status": "idle", "job_id": None, "plugin_id": None}
        rm.update_worker_state(2**22 + 1, status="idle", job_id="stale")
        assert (known := probe(rm, 2**22 + 1)) and known["job_id"] is None


def test_a_worker_that_has_not_reported_yet_is_starting() -> None:
    """Also one that was registered again, or that has reported something else; it is what it reports from then on, None included."""
    with ProcessResourceManager() as rm:
        for _ in range(2):
            rm.register_worker(1, "test")
            assert (worker := rm.worker(1)) and worker.status == rm.snapshot(measure=False).workers[0].status == "starting"
            rm.update_worker_state(1, plugin_id="p")
            assert (worker := rm.worker(1)) and worker.status == "starting"
            for status in ("running", "idle", None):
                rm.update_worker_state(1, status=status)
                assert (worker := rm.worker(1)) and worker.status == status


def test_what_is_given_out_cannot_change_what_is_kept() -> None:
    """A config is copied on its way in and on its way out; one that cannot be copied is no error."""
    with ProcessResourceManager() as rm:
        rm.register_worker(1, "test")
        rm.update_worker_state(1, config={"options": {"beam": 5}})
        worker = rm.worker(1)
        assert worker is not None and worker.config is not None
        worker.config["options"]["beam"] = 6
        assert (worker := rm.worker(1)) and worker.config == {"options": {"beam": 5}}
        lock = threading.Lock()
        rm.update_worker_state(1, config={"lock": lock})
        assert (worker := rm.worker(1)) and worker.config == {"lock": lock}


# Bounds and threads


def test_history_is_a_bounded_ring() -> None:
    """The newest measurements are kept, of each worker."""
    with python(SLEEP) as process, ProcessResourceManager(history=3) as rm:
        rm.register_worker(process.pid, "test")
        for _ in range(10):
            rm.sample()
        worker = rm.worker(process.pid)
    assert worker is not None and len(worker.history) == 3 and worker.history[-1] == worker.usage
    assert [u.time for u in worker.history] == sorted(u.time for u in worker.history if u.time)


def test_peaks_and_the_lost_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins come and go, and workers die, for years."""
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        monkeypatch.setattr(managing.PeakTable, "KEPT", 5)
        rm.register_worker(process.pid, "test")
        for number in range(8):
            rm.update_worker_state(process.pid, plugin_id="p", loaded_plugin_resource=str(number))
            rm.sample()
        assert [key[1] for key in rm.peaks] == ["3", "4", "5", "6", "7"]
        for _ in range(managing.WorkerTable.LOST + 3):
            dead = subprocess.Popen(["true"])
            rm.register_worker(dead.pid, "dead")
            dead.wait()
            rm.sample()
        assert len(rm.snapshot().lost) <= managing.WorkerTable.LOST


def test_a_peak_is_the_most_that_was_measured_with_a_plugin() -> None:
    """It survives the plugin, and counts only what was measured while the plugin was loaded."""
    with python(ALLOCATE) as process, ProcessResourceManager(pss_interval=0) as rm:
        rm.register_worker(process.pid, "test")
        rm.sample()
        assert rm.peaks == {}
        rm.update_worker_state(process.pid, plugin_id="small")
        rm.sample()
        rm.update_worker_state(process.pid, plugin_id="large", loaded_plugin_resource="xl")
        proceed(process)
        rm.sample()
        rm.update_worker_state(process.pid, plugin_id=None, loaded_plugin_resource=None)
        rm.sample()
    small, large = rm.peaks["small", None], rm.peaks["large", "xl"]
    assert small.measurements == large.measurements == 1
    assert small.rss and large.rss and large.rss - small.rss > 60 * MiB
    assert large.pss or not LINUX


GROWS = """
import sys
held = []
print("ready", flush=True)
for line in sys.stdin:
    if held: held.clear()
    else: held.append(b"x" * (64 * 2**20))
    print("ready", flush=True)
"""
linux_only = pytest.mark.skipif(not LINUX, reason="only Linux reports pss")


@linux_only
@pytest.mark.parametrize("reported", ["before it grows", "after it has grown", "while nothing is measured"])
def test_a_peak_is_no_number_from_before_the_plugin(reported: str) -> None:
    """Pss of a plugin was read with the plugin, also within the pace of pss.

    However the report, the growth and the measurements follow each other.
    """
    with python(GROWS) as process, ProcessResourceManager(pss_interval=1000) as rm:
        rm.register_worker(process.pid, "test")
        rm.sample()
        if reported == "before it grows":
            rm.update_worker_state(process.pid, plugin_id="p")
            rm.sample()
        proceed(process)
        if reported == "after it has grown":
            rm.sample()
        rm.update_worker_state(process.pid, plugin_id="p")
        rm.sample()
        peak = rm.peaks["p", None]
        assert peak.rss and peak.pss and 60 * MiB < peak.pss <= peak.rss


@linux_only
@pytest.mark.parametrize("after", [{"plugin_id": "small"}, {"loaded_plugin_resource": "tiny"}], ids=str)
def test_a_peak_is_no_number_of_the_plugin_before(after: "dict[str, str]") -> None:
    """What was loaded before was larger: the next plugin, or the next resource, gets its own number."""
    with python(GROWS) as process, ProcessResourceManager(pss_interval=1000) as rm:
        rm.register_worker(process.pid, "test")
        proceed(process)
        rm.update_worker_state(process.pid, plugin_id="large", loaded_plugin_resource="xl")
        rm.sample()
        proceed(process)
        rm.update_worker_state(process.pid, **after)
        rm.sample()
        (_, large), (_, small) = rm.peaks.items()
        assert small.pss and large.pss and large.pss - small.pss > 60 * MiB


def test_a_measurement_counts_for_no_plugin_that_changed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that is exchanged while its worker is measured gets no peak of it."""
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        rm.update_worker_state(process.pid, plugin_id="before")
        real = meter.scan
        monkeypatch.setattr(meter, "scan", lambda *args: (rm.update_worker_state(process.pid, plugin_id="after"), real())[1])
        rm.sample()
        assert rm.peaks == {}
        rm.sample()
        assert list(rm.peaks) == [("after", None)]


def test_a_worker_that_is_registered_anew_meanwhile_gets_nothing_of_the_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured belongs to the record that was there before."""
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "before")
        real = meter.scan
        monkeypatch.setattr(meter, "scan", lambda *args: (rm.register_worker(process.pid, "after"), real())[1])
        rm.sample()
        worker = rm.worker(process.pid)
        assert worker is not None and worker.worker_type == "after" and worker.usage == Usage() and worker.history == ()


def test_a_snapshot_is_consistent_while_others_write() -> None:
    """Fields that are reported together are seen together, and the numbers are those of one measurement."""
    with python(SLEEP) as one, python(SLEEP) as other, ProcessResourceManager() as rm:
        pids = (one.pid, other.pid)
        stop = threading.Event()
        for pid in pids:
            rm.register_worker(pid, "test")

        def write() -> None:
            for n in itertools.count():
                for pid in pids:
                    rm.update_worker_state(pid, status="running", job_id=f"{n}", plugin_id=f"{n}", config={"n": f"{n}"})
                if n % 50 == 0:
                    rm.sample()
                if stop.is_set():
                    return

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(100):
                snapshot = rm.snapshot()
                assert len(snapshot.workers) == 2
                for w in snapshot.workers:
                    assert w.config is None or w.job_id == w.plugin_id == w.config["n"]
                    assert w.usage == w.history[-1] and w.usage.processes == len(w.processes) == 1
                    assert w.processes[0].rss == w.usage.rss
        finally:
            stop.set()
            writer.join()


def test_many_threads_at_once() -> None:
    """Register, report, measure, look and unregister from eight threads: nothing is lost, nothing raises."""
    errors: "list[BaseException]" = []
    with python(SLEEP) as process, ProcessResourceManager(interval=0.01) as rm:
        rm.register_worker(process.pid, "test")

        def work(first: int) -> None:
            try:
                for pid in range(first, first + 60):
                    rm.register_worker(pid, "kit")
                    rm.update_worker_state(pid, status="running", job_id=str(pid))
                    if pid % 10 == 0:
                        rm.sample()
                        str(rm.snapshot(measure=False))
                    assert (worker := rm.worker(pid)) and worker.job_id == str(pid)
                    rm.unregister_worker(pid)
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=work, args=(2**22 + 1000 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert [w.pid for w in rm.snapshot().workers] == [process.pid]


def measuring_threads() -> "list[threading.Thread]":
    """Those that measure."""
    return [t for t in threading.enumerate() if t.name == "resources"]


def test_without_an_interval_there_is_no_thread() -> None:
    """Measurements are made only in `sample` and `snapshot`."""
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        rm.snapshot()
        assert measuring_threads() == []


def test_the_thread_lives_as_long_as_there_are_workers() -> None:
    """It starts with the first, ends with the last, starts again, and ends with close()."""
    with python(SLEEP) as process, ProcessResourceManager(interval=0.01) as rm:
        assert measuring_threads() == []
        for _ in range(2):
            rm.register_worker(process.pid, "test")
            wait_until(lambda: (worker := rm.worker(process.pid)) is not None and len(worker.history) > 2)
            assert len(measuring_threads()) == 1
            rm.unregister_worker(process.pid)
            wait_until(lambda: measuring_threads() == [])
        rm.register_worker(process.pid, "test")
        rm.close()
        assert measuring_threads() == []
        rm.register_worker(process.pid, "test")
        assert measuring_threads() == [] and measured(rm, process.pid).rss


def test_a_thread_that_cannot_be_started_now_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system has no thread to give, a worker is registered all the same; the next report that needs a thread starts it."""

    class Full(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with python(SLEEP) as process, ProcessResourceManager(interval=0.01) as rm:
        with monkeypatch.context() as patched:
            patched.setattr(managing.threading, "Thread", Full)
            with pytest.raises(RuntimeError):
                rm.register_worker(process.pid, "test")
            assert rm.worker(process.pid) and measuring_threads() == []
        rm.register_worker(process.pid, "test")
        wait_until(lambda: (worker := rm.worker(process.pid)) is not None and worker.usage.rss is not None)


def test_the_thread_ends_when_the_last_worker_died() -> None:
    """Also when it was not unregistered."""
    with ProcessResourceManager(interval=0.01) as rm:
        with python(SLEEP) as process:
            rm.register_worker(process.pid, "test")
        wait_until(lambda: measuring_threads() == [])
        assert [w.pid for w in rm.snapshot().lost] == [process.pid]


def test_the_thread_ends_with_a_manager_that_is_forgotten() -> None:
    """A thread does not keep its manager alive."""
    with python(SLEEP) as process:
        rm = ProcessResourceManager(interval=0.01)
        rm.register_worker(process.pid, "test")
        wait_until(lambda: (worker := rm.worker(process.pid)) is not None and worker.usage.rss is not None)
        del rm

        def ended() -> bool:
            gc.collect()
            return measuring_threads() == []

        wait_until(ended)


def test_what_goes_wrong_in_the_thread_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it goes on."""
    calls: "list[int]" = []

    def broken(found: Any, roots: Any) -> Any:
        calls.append(1)
        raise RuntimeError("no")

    monkeypatch.setattr(meter, "trees", broken)
    with python(SLEEP) as process, ProcessResourceManager(interval=0.001) as rm, caplog.at_level(logging.WARNING):
        rm.register_worker(process.pid, "test")
        wait_until(lambda: len(calls) > 5)
    assert [(r.levelname, r.exc_info is not None) for r in caplog.records] == [("WARNING", True)]


# Containers: what was found on machines of all kinds

V1_STAT = "cache 300\nrss 500\ninactive_file 10\nhierarchical_memory_limit {}\ntotal_cache 300\ntotal_inactive_file 200\n"
NO_LIMIT = "9223372036854771712"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
DOCKER_V1 = "1024 1018 0:31 /docker/6d0f /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:13 - cgroup cgroup rw,memory\n"
C = "sys/fs/cgroup/"
MACHINES: "dict[str, tuple[dict[str, str], tuple[int | None, int | None]]]" = {
    "Docker, version 1, the host's namespace": (
        {
            "proc/self/cgroup": "11:memory:/docker/6d0f\n10:cpu,cpuacct:/docker/6d0f\n1:name=systemd:/docker/6d0f\n0::/system.slice\n",
            "proc/self/mountinfo": DOCKER_V1,
            C + "memory/memory.limit_in_bytes": "1000\n",
            C + "memory/memory.usage_in_bytes": "800\n",
            C + "memory/memory.stat": V1_STAT.format(1000),
        },
        (1000, 600),
    ),
    "version 1 without a limit": (
        {
            "proc/self/cgroup": "4:memory:/a/b\n0::/\n",
            "proc/self/mountinfo": HYBRID,
            C + "memory/a/b/memory.limit_in_bytes": f"{NO_LIMIT}\n",
            C + "memory/a/b/memory.usage_in_bytes": "800\n",
            C + "memory/a/b/memory.stat": V1_STAT.format(NO_LIMIT),
        },
        (None, 600),
    ),
    "version 1, a limit above that cannot be seen": (
        {
            "proc/self/cgroup": "4:memory:/docker/6d0f\n",
            "proc/self/mountinfo": DOCKER_V1,
            C + "memory/memory.limit_in_bytes": f"{NO_LIMIT}\n",
            C + "memory/memory.usage_in_bytes": "800\n",
            C + "memory/memory.stat": V1_STAT.format(900),
        },
        (900, 600),
    ),
    "Docker, version 2, a namespace of its own": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2,
            C + "memory.max": "1000\n",
            C + "memory.current": "800\n",
            C + "memory.stat": "anon 500\nfile 300\ninactive_file 200\n",
        },
        (1000, 600),
    ),
    "Kubernetes, version 2, the pod is smaller than the node": (
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod1.slice/cri.scope\n",
            "proc/self/mountinfo": V2,
            C + "kubepods.slice/pod1.slice/cri.scope/memory.max": "max\n",
            C + "kubepods.slice/pod1.slice/cri.scope/memory.current": "100\n",
            C + "kubepods.slice/pod1.slice/memory.max": "1000\n",
            C + "kubepods.slice/pod1.slice/memory.current": "800\n",
            C + "kubepods.slice/pod1.slice/memory.stat": "inactive_file 300\n",
            C + "kubepods.slice/memory.max": "50000\n",
            C + "kubepods.slice/memory.current": "40000\n",
        },
        (1000, 500),
    ),
    "systemd, version 2, no limit anywhere": (
        {
            "proc/self/cgroup": "0::/user.slice/app.scope\n",
            "proc/self/mountinfo": V2,
            C + "user.slice/app.scope/memory.max": "max\n",
            C + "user.slice/app.scope/memory.current": "100\n",
        },
        (None, 100),
    ),
    "a group outside of what can be seen": (
        {"proc/self/cgroup": "0::/../other\n", "proc/self/mountinfo": V2, C + "memory.max": "700\n", C + "memory.current": "100\n"},
        (700, 100),
    ),
    "a mount point with a blank": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2.replace("/sys/fs/cgroup", "/sys/c\\040g"),
            "sys/c g/memory.max": "700\n",
            "sys/c g/memory.current": "100\n",
        },
        (700, 100),
    ),
    "more cache than use": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2,
            C + "memory.max": "7\n",
            C + "memory.current": "1\n",
            C + "memory.stat": "inactive_file 2\n",
        },
        (7, 0),
    ),
    "a limit, and no word of what is used": ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, C + "memory.max": "7\n"}, (7, None)),
    "no control groups": ({"proc/self/cgroup": "", "proc/self/mountinfo": ""}, (None, None)),
    "no mount": ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "22 1 0:20 / /proc rw - proc proc rw\n"}, (None, None)),
    "rubbish": ({"proc/self/cgroup": "x\n::\n", "proc/self/mountinfo": "x\n - \n", C + "memory.max": "x"}, (None, None)),
}


@pytest.mark.parametrize("name", MACHINES)
def test_container_memory(name: str, tmp_path: Path) -> None:
    """The smallest limit on the way up, and what is used there, less the file cache."""
    files, want = MACHINES[name]
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert container_memory(tmp_path) == want


ODD_NAMES = ["Müller".encode("latin-1"), b"\xff\xfe", "Müller".encode(), "\u2028\u0085".encode()]
ODD_NAMES += [b"a\rb", b"\x0b\x0c\x1c\x1d\x1e", b"-", b"a\\040-\\040b"]


@pytest.mark.parametrize("where", ["before", "after", "the group's own", "its mount point"])
@pytest.mark.parametrize("name", ODD_NAMES, ids=repr)
def test_a_name_of_any_bytes_hides_no_limit(name: bytes, where: str, tmp_path: Path) -> None:
    """Of another mount, of the group, or of the place where it is mounted: names are bytes, and only a few are written in octal."""
    group = b"" if where != "the group's own" else name.replace(b"\\040", b"-")
    point = b"/sys/fs/cgroup" + (b"" if where != "its mount point" else name)
    other, own = b"45 23 8:1 / /media/" + name + b" rw - ext4 /dev/sdb1 rw\n", b"30 23 0:26 / " + point + b" rw - cgroup2 cgroup2 rw\n"
    folder = os.fsencode(tmp_path) + point.replace(b"\\040", b" ") + b"/" + group
    files = {
        os.fsencode(tmp_path / "proc/self/cgroup"): b"0::/" + group + b"\n",
        os.fsencode(tmp_path / "proc/self/mountinfo"): other + own if where == "before" else own + other,
        os.path.join(folder, b"memory.max"): b"1000\n",
        os.path.join(folder, b"memory.current"): b"800\n",
    }
    for file, content in files.items():
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as out:
            out.write(content)
    assert container_memory(tmp_path) == (1000, 800)


@pytest.mark.skipif(not LINUX, reason="only Linux has control groups")
def test_container_memory_of_this_machine() -> None:
    """The folders that are found are those of the group of this process, and its numbers make sense."""
    group = limits.memory_cgroup(Path("/proc/self/cgroup").read_text())
    assert group is not None
    mount = limits.cgroup_mount(Path("/proc/self/mountinfo").read_text(), group[0])
    if mount is None:
        assert container_memory() == (None, None)
        return
    own, *_ = limits.cgroup_folders(group[1], *mount)
    assert str(os.getpid()) in (Path(own) / "cgroup.procs").read_text().split()
    limit, used = container_memory()
    memory = memory_now()
    assert limit is None or 0 < limit < 2**62
    assert used is None or 0 < used < memory.total
    assert 0 < memory.room <= memory.available < memory.total


def test_room_is_the_smaller_of_machine_and_container() -> None:
    """And never below 0."""
    assert Memory(100, 50).room == 50
    assert Memory(100, 50, 60, 20).room == 40
    assert Memory(100, 10, 60, 20).room == 10
    assert Memory(100, 50, 60, 70).room == 0
    assert Memory(100, 50, 60, None).room == 50


# GPUs


@pytest.fixture
def all_pids(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of a container: pids here are those of the machine."""
    monkeypatch.setattr(meter, "sees_all_pids", lambda: True)


def managing_gpus(*cards: Card, **fails: str) -> ProcessResourceManager:
    """A manager on a machine with these GPUs."""
    return ProcessResourceManager(gpus=Nvml(Library(*cards, **fails)))


def test_gpu_memory_is_the_sum_of_gpus_and_of_the_tree(all_pids: None) -> None:
    """A process that computes and draws is listed twice, and counts once; one on two GPUs counts on each; so do instances of a GPU."""
    with python(FORK) as process, python(SLEEP) as other:
        child = psutil.Process(process.pid).children()[0].pid
        first = Card(1000, 100, processes={"Compute": [(process.pid, 100), (1, 7)], "Graphics": [(process.pid, 100)]})
        parts = [("gpuInstanceId", 1)], [("gpuInstanceId", 2)]
        second = Card(1000, 100, name=b"Model", processes={"Compute": [(process.pid, 20), (child, 3, *parts[0]), (child, 4, *parts[1])]})
        library = Library(first, second)
        with ProcessResourceManager(gpus=Nvml(library)) as rm:
            for pid in (process.pid, other.pid):
                rm.register_worker(pid, "test")
            snapshot = rm.snapshot()
            rm.sample()
        assert [w.usage.gpu_memory for w in snapshot.workers] == [127, 0]
        assert [dict(w.usage.by_gpu) for w in snapshot.workers] == [{"GPU 0": 100, "GPU 1": 27}, {"GPU 0": 0, "GPU 1": 0}]
        assert snapshot.gpus == (Gpu(0, "Model", 1000, 100), Gpu(1, "Model", 1000, 100))
        assert library.calls == ["Init", "Shutdown"] and rm.gpu_problem is None


@pytest.mark.parametrize("amount", [None, 100])
def test_gpu_memory_that_is_not_reported_is_unknown(all_pids: None, amount: "int | None") -> None:
    """One process without an amount makes the worker's unknown; never 0, never a part."""
    with python(FORK) as process:
        child = psutil.Process(process.pid).children()[0].pid
        with managing_gpus(Card(processes={"Compute": [(process.pid, 100), (child, amount)]})) as rm:
            rm.register_worker(process.pid, "test")
            assert measured(rm, process.pid).gpu_memory == (None if amount is None else 200)


HANDLE, MEMORY, LISTED = "HandleByIndex", "MemoryInfo", "ComputeRunningProcesses"
SILENT = [
    {HANDLE: "GpuIsLost"},
    {HANDLE: "NoPermission"},
    {HANDLE: "Unknown", "Name": "Unknown"},
    {MEMORY: "GpuIsLost", LISTED: "GpuIsLost", "Name": "GpuIsLost", "UUID": "GpuIsLost"},
    {MEMORY: "NoPermission", LISTED: "NoPermission"},
    {MEMORY: "ResetRequired", LISTED: "Timeout"},
]


@pytest.mark.parametrize("fails", SILENT, ids=str)
@pytest.mark.parametrize("position", [0, 1])
def test_a_gpu_that_does_not_answer_hides_no_other(all_pids: None, position: int, fails: "dict[str, str]") -> None:
    """It is listed with the reason, and what the worker holds of it is unknown; the other GPU is read as before."""
    with python(SLEEP) as process:
        cards = [Card(1000, 100, processes={"Compute": [(process.pid, 60)]})]
        cards.insert(position, Card(fails=fails))
        with managing_gpus(*cards) as rm:
            rm.register_worker(process.pid, "test")
            rm.update_worker_state(process.pid, plugin_id="p")
            snapshot = rm.snapshot()
        assert snapshot.gpus and snapshot.gpus[1 - position] == Gpu(1 - position, "Model", 1000, 100)
        silent, (usage,) = snapshot.gpus[position], [w.usage for w in snapshot.workers]
        assert (silent.total, silent.used, silent.shared) == (None, None, False)
        assert silent.problem and next(iter(fails.values())) in silent.problem
        assert snapshot.gpu_problem and silent.label in snapshot.gpu_problem
        assert usage.by_gpu == {f"GPU {1 - position}": 60, silent.label: None} and usage.gpu_memory is None and usage.rss
        assert rm.peaks["p", None].gpu_memory == 60


@pytest.mark.parametrize("question", ["Name", "UUID", MEMORY, LISTED, "GraphicsRunningProcesses"])
def test_a_question_without_an_answer_hides_no_other_question(all_pids: None, question: str) -> None:
    """A GPU without a name has memory; one whose processes may not be listed has a size."""
    with (
        python(SLEEP) as process,
        managing_gpus(
            Card(1000, 100, "GPU-1", processes={"Compute": [(process.pid, 60)]}, fails={question: "NoPermission"})
        ) as rm,
    ):
        rm.register_worker(process.pid, "test")
        snapshot = rm.snapshot()
    assert snapshot.gpus is not None
    (card,), (worker,) = snapshot.gpus, snapshot.workers
    assert (card.name, card.uuid) == ("" if question == "Name" else "Model", "" if question == "UUID" else "GPU-1")
    assert (card.total, card.used) == ((None, None) if question == MEMORY else (1000, 100))
    assert worker.usage.gpu_memory == (None if question.endswith("RunningProcesses") else 60)
    assert snapshot.gpu_problem and "NoPermission" in snapshot.gpu_problem


def test_memory_that_is_the_machines() -> None:
    """`NotSupported` for the memory of a whole GPU means that it has none of its own.

    For an instance it means no more than that it is unknown.
    """
    part = Card(fails={MEMORY: "NotSupported"})
    listed = Nvml(Library(Card(fails={MEMORY: "NotSupported"}), Card(instances=[part])))
    shared, instance = listed.gpus() or ()
    assert shared.shared and shared.problem is None and (instance.label, instance.shared) == ("GPU 1 MIG 0", False)
    assert instance.problem and "NotSupported" in instance.problem and listed.nvml.problem and "GPU 0" not in listed.nvml.problem


def test_instances_of_a_gpu_are_listed_by_themselves(all_pids: None) -> None:
    """Each that exists, with its own memory and processes; the whole, which only some may read, is not asked."""
    with python(SLEEP) as process:
        busy = Card(20, 2, "MIG-b", processes={"Compute": [(process.pid, 2)]})
        parts = [Card(10, 1, "MIG-a"), None, busy, Card(fails={"MigDeviceHandleByIndex": "NoPermission"})]
        whole = Card(instances=parts, fails={MEMORY: "NoPermission", LISTED: "NoPermission"})
        with managing_gpus(whole, Card(30, 3)) as rm:
            rm.register_worker(process.pid, "test")
            snapshot = rm.snapshot()
    assert snapshot.gpus is not None
    assert [(g.label, g.total, g.uuid) for g in snapshot.gpus] == [
        ("GPU 0 MIG 0", 10, "MIG-a"),
        ("GPU 0 MIG 2", 20, "MIG-b"),
        ("GPU 0 MIG 3", None, ""),
        ("GPU 1", 30, ""),
    ]
    assert snapshot.workers[0].usage.by_gpu == {"GPU 0 MIG 0": 0, "GPU 0 MIG 2": 2, "GPU 0 MIG 3": None, "GPU 1": 0}


@pytest.mark.parametrize("fails", [{"Count": "Unknown"}, {"Count": "GpuIsLost"}], ids=str)
def test_a_driver_that_fails_is_unknown_and_may_recover(all_pids: None, fails: "dict[str, str]") -> None:
    """An error makes everything None, with the reason; the next answer counts again."""
    with python(SLEEP) as process:
        library = Library(Card(processes={"Compute": [(process.pid, 100)]}), **fails)
        with ProcessResourceManager(gpus=Nvml(library)) as rm:
            rm.register_worker(process.pid, "test")
            snapshot = rm.snapshot()
            assert (snapshot.workers[0].usage.gpu_memory, snapshot.gpus) == (None, None) and snapshot.workers[0].usage.rss
            assert rm.gpu_problem and fails["Count"] in rm.gpu_problem and rm.gpu_problem == snapshot.gpu_problem
            library.fails.clear()
            assert measured(rm, process.pid).gpu_memory == 100 and rm.gpu_problem is None is rm.snapshot().gpu_problem


@pytest.mark.parametrize(
    "name, absent",
    [
        ("LibraryNotFound", True),
        ("DriverNotLoaded", True),
        ("LibRmVersionMismatch", False),
        ("NoPermission", False),
        ("Unknown", False),
    ],
)
def test_no_driver_is_told_from_one_that_fails(name: str, absent: bool) -> None:
    """Both are unknown, and the reason is kept; only a driver that is there is a problem of the snapshot."""
    with managing_gpus(Card(), Init=name) as rm:
        snapshot = rm.snapshot()
        assert snapshot.gpus is None and rm.gpu_problem and name in rm.gpu_problem
        assert (snapshot.gpu_problem is None) == absent


IDS = (
    Gpu(0, uuid="GPU-aa11"),
    Gpu(1, uuid="GPU-aa22"),
    Gpu(2, uuid="GPU-bb33", instance=0),
    Gpu(2, uuid="MIG-cc44", instance=1),
    Gpu(3, uuid=""),
)


@pytest.mark.parametrize(
    "setting, want",
    [
        (None, [0, 1, 2, 4]),
        ("", []),
        ("1", [1]),
        ("3,0", [4, 0]),
        (" 1 , 0 ", [1, 0]),
        ("2", [2]),
        ("0,2,-1,1", [0, 2]),
        ("0,9,1", [0]),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,0", []),
        ("GPU-aa22", [1]),
        ("GPU-b,GPU-aa1", [2, 0]),
        ("GPU-aa", []),  # two begin like that
        ("GPU-ff,0", []),
        ("MIG-cc44", [3]),
        ("1,GPU-aa11", [1, 0]),
        ("²", []),
    ],
)
def test_cuda_numbers_the_visible_gpus(setting: "str | None", want: "list[int]") -> None:
    """By number and by the beginning of a UUID, until the first entry that is invalid."""
    assert gpu.visible_gpus(IDS, setting) == [IDS[number] for number in want]


def test_pids_of_the_machine_are_not_mistaken_in_a_container(tmp_path: Path) -> None:
    """There a pid counts only if its process has a GPU open, an amount of 0 is unknown, and who has none open holds nothing."""
    (tmp_path / "nvidia0").touch()
    with python(SLEEP) as without, (tmp_path / "nvidia0").open() as device, python(SLEEP, pass_fds=[device.fileno()]) as holder:
        opens = {pid: gpu.holds_gpu(pid, devices=(str(tmp_path / "nvidia"),)) for pid in (without.pid, holder.pid)}
        assert opens == {without.pid: False, holder.pid: True}
    assert gpu.holds_gpu(2**22 + 1) is False


@pytest.mark.parametrize(
    "opened, used, want",
    [
        (False, {"GPU 0": {7: 500}}, {"GPU 0": 0}),
        (True, {"GPU 0": {7: 500}, "GPU 1": {}}, {"GPU 0": 500, "GPU 1": 0}),
        (True, {"GPU 0": {7: 500}, "GPU 1": None}, {"GPU 0": 500, "GPU 1": None}),
        (True, {"GPU 0": {7: 0}}, {"GPU 0": None}),
        (True, {"GPU 0": {}}, {"GPU 0": None}),
        (None, {"GPU 0": {7: 500}}, {"GPU 0": None}),
    ],
)
def test_what_counts_in_a_container(monkeypatch: pytest.MonkeyPatch, opened: "bool | None", used: Any, want: Any) -> None:
    """An amount counts for a process that has a GPU open; one that is listed nowhere, or with 0, is unknown."""
    monkeypatch.setattr(gpu, "holds_gpu", lambda pid: opened)
    assert gpu.gpu_memory([7], used, all_pids=False) == want


def test_without_a_driver_gpu_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library, or with the real one and no driver, it is None, with the reason."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        assert measured(rm, process.pid).gpu_memory is None
        snapshot = rm.snapshot()
        assert snapshot.gpus is None is snapshot.gpu_problem and rm.gpu_problem and "pynvml" in rm.gpu_problem
    monkeypatch.undo()
    if (problem := no_gpu()) is not None:
        real = Nvml()
        assert real.used() is None and real.gpus() is None and real.nvml.problem == problem


def test_a_closed_driver_is_not_asked() -> None:
    """Everything is unknown afterwards, and it is stopped once, if it was started."""
    started, unused = Library(Card()), Library(Card())
    for library in (started, unused):
        with ProcessResourceManager(gpus=Nvml(library)) as rm:
            if library is started:
                assert rm.snapshot().gpus
        rm.close()
        assert rm.snapshot().gpus is None
    assert (started.calls, unused.calls) == (["Init", "Shutdown"], [])


def no_gpu() -> "str | None":
    """Why NVIDIA's library does not work here; None when it does."""
    library = importlib.import_module("pynvml")
    try:
        library.nvmlInit()
        library.nvmlShutdown()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return None


@pytest.mark.needs_gpu
def test_a_real_gpu() -> None:
    """A process that holds 256 MiB of a real GPU is seen to hold at least as much; one that holds none is not."""
    if (problem := no_gpu()) is not None:
        pytest.skip(f"NVIDIA's library does not work here: {problem}")
    with python(HOLD_GPU) as process, python(SLEEP) as other, ProcessResourceManager() as rm:
        for pid in (process.pid, other.pid):
            rm.register_worker(pid, "test")
        snapshot = rm.snapshot()
    holder, without = snapshot.workers
    assert snapshot.gpus and all(gpu.total and gpu.used is not None for gpu in snapshot.gpus)
    assert without.usage.gpu_memory == 0
    if gpu.sees_all_pids():
        assert holder.usage.gpu_memory is not None
    assert holder.usage.gpu_memory is None or holder.usage.gpu_memory >= 256 * MiB


HOLD_GPU = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *args):
    if error := getattr(cuda, name)(*args): raise SystemExit(f"{name}: {error}")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(256 * 2**20))
print("ready", flush=True)
sys.stdin.read()
"""


# Renderings


EVIL = '<script>alert("1")</script>\\ \x1b[2J\nsecond'


def pictures() -> Snapshot:
    """Workers with everything, with nothing, and with bad words."""
    usage = Usage(1.0, 300 * MiB, 200 * MiB, 150.4, 12.5, 7, 3, 0)
    full = Worker(10, "speech", "running", "job-1", "Whisper", "whisper", "large-v3", {"token": "secret"}, usage, (), (usage, usage))
    evil = Worker(12, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, {EVIL: EVIL})
    memory = Memory(1000 * MiB, 600 * MiB, 500 * MiB, 100 * MiB)
    return Snapshot(2.0, (full, Worker(11, "speech"), evil), (evil,), memory, (Gpu(0, EVIL, 1000, 100),))


class _Tags(html.parser.HTMLParser):
    """Which tags there are, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: "list[str]" = []
        self.text: "list[str]" = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_escaped_and_shows_everything_but_configs() -> None:
    """No tag but ours; each worker has a row, and what is unknown is a dash."""
    parser = _Tags()
    parser.feed(page := pictures()._repr_html_())
    assert set(parser.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "p", "br", "svg", "polyline"}
    assert parser.tags.count("tr") == 5 and parser.tags.count("svg") == 1
    assert {"Whisper", "large-v3", "300 MiB", "150 %", "lost", "—"} <= set(parser.text)
    assert "secret" not in page


def test_no_form_shows_a_config() -> None:
    """There may be a password in it: not the table, not HTML, not Prometheus, not a repr that lands in a log."""
    worker = Worker(1, "test", plugin_id="p", config={"password": "hush"})
    picture = Snapshot(0.0, (worker,), (worker,))
    assert "hush" not in f"{worker!r} {picture!r} {picture} {picture._repr_html_()} {picture.prometheus()}"


def test_the_manager_shows_itself() -> None:
    """A notebook shows a manager as the table of a fresh measurement."""
    with python(SLEEP) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        assert f">{process.pid}</td>" in rm._repr_html_() and repr(rm) == "ProcessResourceManager(1 workers)"


def test_the_table_does_nothing_to_a_terminal() -> None:
    """One line for each worker, columns that line up, and no control characters."""
    text = str(pictures())
    lines = text.splitlines()
    assert lines[0].startswith("pid") and len(lines) == 9 and max(map(len, lines)) < 240 and all(c.isprintable() or c == "\n" for c in text)
    assert lines[1].index("large-v3") == lines[0].index("holds") and "secret" not in text
    assert "memory: 400 MiB free of 500 MiB" in lines


def test_prometheus_reads_it() -> None:
    """The parser of prometheus_client takes it, gives every number back, and no number for what is unknown."""
    text = pictures().prometheus()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {(s.name, s.labels.get("pid")): s for family in families.values() for s in family.samples}
    assert samples["cjm_workers", None].value == 3
    assert samples["cjm_worker_resident_memory_bytes", "10"].value == 300 * MiB
    assert samples["cjm_worker_proportional_memory_bytes", "10"].value == 200 * MiB
    assert samples["cjm_worker_gpu_memory_bytes", "10"].value == 0
    assert samples["cjm_worker_cpu_seconds_total", "10"].value == 12.5
    assert families["cjm_worker_cpu_seconds"].type == "counter" and families["cjm_worker_threads"].type == "gauge"
    assert not [name for name, pid in samples if pid in ("11", "12") and name != "cjm_worker_info"]
    info = samples["cjm_worker_info", "12"].labels
    assert info == {"pid": "12", "worker_type": EVIL, "status": EVIL, "plugin": EVIL, "resource": EVIL}
    assert samples["cjm_memory_room_bytes", None].value == 400 * MiB and samples["cjm_memory_limit_bytes", None].value == 500 * MiB
    assert samples["cjm_gpu_memory_used_bytes", None].labels == {"gpu": "0", "name": EVIL}
    assert "job-1" not in text and "secret" not in text
    assert all(family.documentation for family in families.values())


def test_prometheus_reads_real_workers() -> None:
    """The same of a real worker."""
    with python(SPIN) as process, ProcessResourceManager() as rm:
        rm.register_worker(process.pid, "test")
        rm.sample()
        proceed(process)
        families = list(text_string_to_metric_families(rm.snapshot().prometheus()))
    samples = [sample for family in families for sample in family.samples]
    found = {s.name: s.value for s in samples if s.labels.get("pid") == str(process.pid)}
    assert found["cjm_worker_resident_memory_bytes"] > MiB and found["cjm_worker_cpu_seconds_total"] > 0.2
    assert "cjm_worker_gpu_memory_bytes" not in found or no_gpu() is None


# With a job manager


def allocate(size: int, name: str) -> "Iterator[int]":
    """Hold some memory, and a child, until a gate opens."""
    import os
    import subprocess

    held = b"x" * size
    child = subprocess.Popen(["sleep", "1000"])
    yield os.getpid()
    with open(name, "rb", buffering=0) as file:
        file.read(1)
    child.kill()
    child.wait()
    del held


async def test_a_job_manager_end_to_end(gate: Gate) -> None:  # noqa: F811
    """What a running job uses is seen with its child and its names; idle, the worker has no job; after the shutdown there is no worker."""
    with ProcessResourceManager(pss_interval=0) as rm:
        async with manager(allocate, resource_manager=rm) as m:
            job = await m.start_job("allocate", size=64 * MiB, name=gate.path)
            pid = await first_chunk(job)
            (worker,) = rm.snapshot().workers
            assert (worker.pid, worker.worker_type, worker.status, worker.job_id) == (pid, "test", "running", job.id)
            assert worker.plugin_id == "allocate" and worker.usage.processes and worker.usage.processes >= 2
            assert worker.usage.rss and worker.usage.rss > 64 * MiB
            gate.open()
            await end(job)
            assert job.status == "completed"
            await until(lambda: rm.snapshot().workers[0].status == "idle")
            (worker,) = rm.snapshot().workers
            assert worker.job_id is None
            assert any(key[0] == "allocate" and peak.rss and peak.rss > 64 * MiB for key, peak in rm.peaks.items())
        assert rm.snapshot().workers == rm.snapshot().lost == () and not m.integration_errors


async def test_a_worker_that_is_killed_leaves_no_row(gate: Gate) -> None:  # noqa: F811
    """Whether the manager or a measurement is faster, a dead worker is none."""
    with ProcessResourceManager(interval=0.005) as rm:
        async with manager(allocate, resource_manager=rm) as m:
            job = await m.start_job("allocate", size=1, name=gate.path)
            pid = await first_chunk(job)
            os.kill(pid, signal.SIGKILL)
            await end(job)
            assert job.status == "failed"

            def forgotten() -> bool:
                snapshot = rm.snapshot()
                return pid not in [w.pid for w in snapshot.workers + snapshot.lost]

            await until(forgotten)
        assert not m.integration_errors


# Managers that cannot clear


class IgnoresNone:
    """Takes None for an omitted field."""

    def __init__(self) -> None:
        self.workers: "dict[int, dict[str, Any]]" = {}
        self.registered: "deque[int]" = deque(maxlen=10)
        self.ended: "deque[dict[str, Any]]" = deque(maxlen=10)
        self.jobs: "dict[str, int]" = {}  # An index of its own, which only the end of a worker clears

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.registered.append(pid)
        self.workers[pid] = dict.fromkeys(("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config"))

    def unregister_worker(self, pid: int) -> None:
        if pid in self.workers:
            self.ended.append(self.workers.pop(pid))
        self.jobs = {job: worker for job, worker in self.jobs.items() if worker != pid}

    def update_worker_state(
        self,
        pid: int,
        status: "str | None" = None,
        job_id: "str | None" = None,
        plugin_name: "str | None" = None,
        plugin_id: "str | None" = None,
        loaded_plugin_resource: "str | None" = None,
        config: "dict[str, Any] | None" = None,
    ) -> None:
        given = dict(status=status, job_id=job_id, plugin_name=plugin_name, plugin_id=plugin_id)
        self.take(self.workers[pid], {**given, "loaded_plugin_resource": loaded_plugin_resource, "config": config})
        if job_id:
            self.jobs[job_id] = pid

    def take(self, record: "dict[str, Any]", given: "dict[str, Any]") -> None:
        record.update({name: value for name, value in given.items() if value is not None})


class IgnoresEmpty(IgnoresNone):
    """Takes an empty value for an omitted field."""

    def take(self, record: "dict[str, Any]", given: "dict[str, Any]") -> None:
        record.update({name: value for name, value in given.items() if value})


class Merges(IgnoresNone):
    """Adds a new config to the old one."""

    def take(self, record: "dict[str, Any]", given: "dict[str, Any]") -> None:
        config = given["config"]
        super().take(record, {**given, "config": config if config is None else {**(record["config"] or {}), **config}})


KINDS = [IgnoresNone, IgnoresEmpty, Merges]


@pytest.mark.parametrize("kind", KINDS)
def test_the_kit_finds_nothing_behind_an_adapter(kind: "type[IgnoresNone]") -> None:
    """What the kit finds in each of them alone, it finds no more; only what is empty stays unknown to the one that ignores it."""
    alone = check(kind, ResourceManagerProtocol, probe=lambda rm, pid: rm.workers.get(pid))
    adapted = check(lambda: ClearingAdapter(kind()), ResourceManagerProtocol, probe=lambda rm, pid: rm.inner.workers.get(pid))
    assert any(finding.id.startswith(("resources.clear", "resources.snapshot")) for finding in alone.findings)
    assert {finding.id for finding in adapted.findings} <= ({"resources.empty_values"} if kind is IgnoresEmpty else set()), adapted


def ping(config: Any = None) -> str:
    """Do nothing."""
    return "pong"


class Loaded:
    """A plugin with a config."""

    def load(self, config: Any) -> None:
        self.config = config

    def run(self) -> Any:
        return self.config


class Registry:
    """Two plugins; the second has a config of other keys."""

    configs: "dict[str, dict[str, Any]]" = {"first": {"model": "m", "a": 1}, "second": {"b": 2}}

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return [{"id": name, "name": name} for name in self.configs]

    def get_plugin(self, plugin_id: str) -> Any:
        return {"id": plugin_id, "name": plugin_id} if plugin_id in self.configs else None

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        return dict(self.configs[plugin_id])


@pytest.mark.parametrize("kind", KINDS)
async def test_an_adapter_with_a_real_job_manager(kind: "type[IgnoresNone]") -> None:
    """After two jobs of two plugins, the record has nothing of the first, and no job."""
    inner = kind()
    right = ProcessResourceManager()
    seen: "list[tuple[Any, Any]]" = []

    class Both(ClearingAdapter):
        """Reports the same to a right manager, and compares."""

        def register_worker(self, pid: int, worker_type: str) -> None:
            super().register_worker(pid, worker_type)
            right.register_worker(pid, worker_type)

        def update_worker_state(self, pid: int, *args: Any, **state: Any) -> None:
            super().update_worker_state(pid, *args, **state)
            right.update_worker_state(pid, *args, **state)
            known = probe(right, pid)
            assert known is not None
            seen.append((dict(inner.workers[pid]), {name: known[name] for name in inner.workers[pid]}))
    plugins = {"first": Loaded, "second": Loaded}
    from cjm_worker_protocols import JobManager, WorkerConfig

    config = WorkerConfig(standby=False)
    parts: "dict[str, Any]" = {"plugin_registry": Registry(), "resource_manager": Both(inner)}
    async with JobManager("test", "tests", worker_config=config, plugins=plugins, **parts) as m:
        for name in ("first", "second", "first"):
            await (await m.start_job(name))
    assert not m.integration_errors, m.integration_errors
    assert len(seen) >= 6 and inner.workers == {}
    for got, want in seen:
        assert got == want
    last = inner.ended[-1]
    assert last["job_id"] is None and last["config"] == Registry.configs["first"] and inner.jobs == {}


def test_an_adapter_registers_anew_only_when_something_goes() -> None:
    """A report that only adds something does not register the worker anew."""
    inner = IgnoresNone()
    adapter = ClearingAdapter(inner)
    adapter.register_worker(1, "test")
    adapter.update_worker_state(1, status="running", job_id="a", config={"x": 1})
    adapter.update_worker_state(1, plugin_name="P", plugin_id="p")
    adapter.update_worker_state(1, job_id="a", config={"x": 1})
    assert list(inner.registered) == [1] and not inner.ended
    adapter.update_worker_state(1, job_id=None)
    assert list(inner.registered) == [1, 1] and inner.workers[1]["job_id"] is None and inner.workers[1]["config"] == {"x": 1}
    adapter.update_worker_state(1, status=UNSET, config={})
    assert list(inner.registered) == [1, 1, 1] and inner.workers[1]["status"] == "running"
    adapter.update_worker_state(2, status="running")
    adapter.unregister_worker(2)
    adapter.unregister_worker(1)
    adapter.unregister_worker(1)
    adapter.update_worker_state(1, status="running")
    assert inner.workers == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_reported_an_adapter_ends_in_the_right_state(kind: "type[IgnoresNone]", seed: int) -> None:
    """After each of many random reports the record is that of a manager that can clear.

    The index knows the jobs that run, and no other.
    """
    choose, inner, right = random.Random(seed), kind(), ProcessResourceManager()
    adapter = ClearingAdapter(inner)
    values: "dict[str, list[Any]]" = {
        "status": ["idle", "running", UNSET],
        "job_id": ["a", "b", "c", None, UNSET],
        "plugin_id": ["p", "q", None, UNSET],
        "config": [{"x": 1}, {"y": 2}, {"x": 1, "y": 2}, None, UNSET],
    }
    first = 2**22 + 1
    for manager in (adapter, right):
        for pid in (first, first + 1):
            manager.register_worker(pid, "test")
    for _ in range(60):
        pid = choose.choice((first, first + 1))
        if choose.random() < 0.05:
            for manager in (adapter, right):
                manager.register_worker(pid, "test")
            continue
        state = {name: choose.choice(some) for name, some in values.items()}
        if isinstance(state["job_id"], str):
            state["job_id"] += f" of {pid}"
        if state["status"] == "idle":
            state["job_id"] = choose.choice((None, UNSET))
        for manager in (adapter, right):
            manager.update_worker_state(pid, **state)
        known = probe(right, pid)
        assert known and {name: inner.workers[pid][name] for name in ("job_id", "plugin_id", "config")} == {
            name: known[name] for name in ("job_id", "plugin_id", "config")
        }
        running = {worker["job_id"]: worker_pid for worker_pid, worker in inner.workers.items() if worker["job_id"]}
        assert set(inner.jobs) == set(running)


def test_an_adapter_unregisters_before_it_registers_again() -> None:
    """On every change of the job that leaves one behind, on every value that goes, and when a pid is registered again.

    Never for news.
    """
    calls: "list[str]" = []

    class Records(IgnoresNone):
        def register_worker(self, pid: int, worker_type: str) -> None:
            calls.append("register")
            super().register_worker(pid, worker_type)

        def unregister_worker(self, pid: int) -> None:
            calls.append("unregister")
            super().unregister_worker(pid)

    adapter = ClearingAdapter(Records())
    adapter.register_worker(1, "test")
    expected = ["register"]
    changes: "list[tuple[dict[str, Any], bool]]" = [
        ({"status": "running", "job_id": "a"}, False),
        ({"status": "running", "job_id": "a"}, False),
        ({"job_id": "b"}, True),
        ({"job_id": "b", "plugin_id": "p"}, False),
        ({"job_id": None}, True),
        ({"job_id": "a"}, False),
        ({"status": "idle"}, True),
        ({"plugin_id": None}, True),
    ]
    for change, anew in changes:
        adapter.update_worker_state(1, **change)
        expected += ["unregister", "register"] * anew
        assert calls == expected, change
    adapter.register_worker(1, "another")
    assert calls == [*expected, "unregister", "register"]


def test_an_adapter_takes_the_job_of_a_worker_reported_idle() -> None:
    """Also when nothing else is reported; a job in the same call counts."""
    inner = IgnoresNone()
    adapter = ClearingAdapter(inner)
    adapter.register_worker(1, "test")
    adapter.update_worker_state(1, status="running", job_id="a", plugin_id="p")
    adapter.update_worker_state(1, status="idle")
    assert (inner.workers[1]["status"], inner.workers[1]["job_id"], inner.workers[1]["plugin_id"]) == ("idle", None, "p")
    adapter.update_worker_state(1, status="idle", job_id="b")
    assert inner.workers[1]["job_id"] == "b"


def test_an_adapter_clears_what_is_empty_and_what_cannot_be_compared() -> None:
    """An empty text is no None; values that raise when they are compared count as changed, and nothing that was reported is lost."""

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError

    inner = Merges()
    adapter = ClearingAdapter(inner)
    adapter.register_worker(1, "test")
    adapter.update_worker_state(1, loaded_plugin_resource="", config={"a": Odd()})
    assert inner.workers[1]["loaded_plugin_resource"] == ""
    adapter.update_worker_state(1, loaded_plugin_resource=None, config={"b": Odd()})
    assert inner.workers[1]["loaded_plugin_resource"] is None and list(inner.workers[1]["config"]) == ["b"]
    adapter.update_worker_state(1, config={"b": Odd()})
    assert list(inner.workers[1]["config"]) == ["b"]


def test_an_adapter_recovers_from_a_manager_that_raises() -> None:
    """After an error, everything is reported anew."""
    inner = IgnoresNone()
    adapter = ClearingAdapter(inner)
    adapter.register_worker(1, "test")
    adapter.update_worker_state(1, status="running", job_id="a")
    real, inner.update_worker_state = inner.update_worker_state, None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        adapter.update_worker_state(1, status="idle", job_id=None)
    inner.update_worker_state = real  # type: ignore[method-assign]
    adapter.update_worker_state(1, plugin_id="p")
    assert inner.workers[1]["job_id"] is None and inner.workers[1]["plugin_id"] == "p" and inner.workers[1]["status"] == "idle"


def test_peaks_are_plain_values() -> None:
    """Something that admits jobs can read them: by plugin and resource, in bytes, None when never known."""
    peak = Peak("p", "r").with_usage(Usage()).with_usage(Usage(rss=5)).with_usage(Usage(rss=3, gpu_memory=0))
    assert peak == Peak("p", "r", rss=5, pss=None, gpu_memory=0, measurements=3)
    assert Process._fields[0] == "pid" and asdict(peak)["rss"] == 5
