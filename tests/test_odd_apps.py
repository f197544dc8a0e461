"""The worker system in odd apps: their loop, flags, signals, descriptors and defaults; and time limits that are fair to slow apps."""

import asyncio
import os
import subprocess
import sys

import pytest
from repo import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.limit(90)]

CORE = """
import asyncio, json, os, sys, time
from sample_plugins import count, crash, echo, fail, cooperative, stuck
from cjm_worker_protocols import JobManager, WorkerConfig

async def core():
    plugins = {f.__name__: f for f in (count, crash, echo, fail, cooperative, stuck)}
    heard = []
    class Hub:
        async def broadcast(self, event_type, data): heard.append(event_type)
    config = WorkerConfig(max_workers=2, grace_timeout=2.0, backoff_base=0.01)
    async with JobManager("odd", "odd", plugins=plugins, worker_config=config, event_broadcaster=Hub()) as m:
        events = m.events()
        assert await asyncio.gather(*[await m.start_job("echo", x=n) for n in range(20)]) == list(range(20))
        job = await m.start_job("count", n=500)
        assert [chunk async for chunk in job.stream()] == list(range(500)) and await job == "counted to 500"
        assert len(await (await m.start_job("echo", x=bytes(5_000_000)))) == 5_000_000
        bad, dead = await m.start_job("fail"), await m.start_job("crash")
        await asyncio.gather(bad.wait(), dead.wait())
        assert (bad.error.category, dead.error.category, dead.error.signal) == ("exception", "crash", 9), (bad, dead)
        for plugin in ("stuck", "cooperative"):
            job = await m.start_job(plugin)
            async for chunk in job.stream(): break
            began = time.monotonic()
            assert await m.cancel_job(job.id) and time.monotonic() - began < 10
        assert await (await m.start_job("echo", x="after")) == "after"
        assert m.totals == {"completed": 23, "failed": 2, "cancelled": 2}, m.totals
    seen = [event.type async for event in events]
    assert seen == heard and seen.count("job:completed") == 23 and not m.workers
    print("fine")
"""
PLAIN = "asyncio.run(core())"
REAPER = """
import threading
def reap():
    while True:
        try: os.waitpid(-1, 0)
        except ChildProcessError: time.sleep(0.005)
threading.Thread(target=reap, daemon=True).start()
"""
UNKNOWN = ("a reaper", "SIGCHLD ignored")  # Apps in which it may not be known how a process ended: another may have reaped it first
APPS = {  # What comes before, how it is run, and the interpreter's flags
    "plain": ("", PLAIN, []),
    "uvloop": ("import uvloop", "asyncio.Runner(loop_factory=uvloop.new_event_loop).run(core())", []),
    "debug, warnings are errors": ("", "asyncio.run(core(), debug=True)", ["-W", "error"]),
    "-X dev": ("", PLAIN, ["-X", "dev", "-W", "error::ResourceWarning"]),
    "2,000 descriptors": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "kept = [open(os.devnull) for _ in range(2000)]",
        PLAIN,
        [],
    ),
    "blocked mask": ("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 32)) - {9, 19})", PLAIN, []),
    "a reaper": (REAPER, PLAIN, []),
    "SIGCHLD ignored": ("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)", PLAIN, []),
    "odd defaults": (
        "import socket, locale; socket.setdefaulttimeout(0.001); sys.setrecursionlimit(400)\n"
        "locale.setlocale(locale.LC_ALL, 'C'); os.umask(0o777)",
        PLAIN,
        [],
    ),
    "a log filter that raises": (
        "import logging\nclass Raises(logging.Filter):\n    def filter(self, record): raise RuntimeError(record)\n"
        "for name in ('', 'cjm_worker_protocols', 'cjm_worker_protocols.managers.ends', 'cjm_worker_protocols.worker', 'asyncio'):\n"
        "    logging.getLogger(name).addFilter(Raises())",
        PLAIN,
        [],
    ),
}
if sys.version_info >= (3, 12):
    EAGER = "async def eager():\n    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)\n    await core()"
    APPS["eager tasks"] = (EAGER, "asyncio.run(eager())", [])


@pytest.mark.parametrize("app", APPS)
def test_the_core_in_an_odd_app(app: str) -> None:
    """Jobs, streams, large values, failures, crashes, both ways of cancelling, events and shutdown."""
    if app == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed: pip install -e '.[dev]'")
    before, how, flags = APPS[app]
    core = CORE.replace(', dead.error.signal) == ("exception", "crash", 9)', ') == ("exception", "crash")') if app in UNKNOWN else CORE
    code = "\n".join((core, before, how))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment, timeout=90, check=False)
    assert done.returncode == 0 and done.stdout == "fine\n", done.stdout[-1000:] + done.stderr[-3000:]
    noise = [line for line in done.stderr.splitlines() if "never awaited" in line or "ResourceWarning" in line or "was never" in line]
    assert not noise, noise


FAIR = """
import asyncio, os, signal, sys, time
from cjm_worker_protocols import JobManager, WorkerConfig

def work(size):
    import time
    time.sleep(0.3)
    return bytes(size)

async def main(how, size):
    async with JobManager("fair", "fair", plugins={"work": work}, worker_config=WorkerConfig(standby=False)) as m:
        await (await m.start_job("work", size=1))
        job = await m.start_job("work", size=size, timeout=1.5)
        while job.status != "running": await asyncio.sleep(0.01)
        print("begun", flush=True)
        if how == "blocked": time.sleep(2)
        await job.wait()
        print(job.status, len(job.result or b""), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize("size", [10, 100_000, 30_000_000])
@pytest.mark.parametrize("how", ["blocked", "stopped"])
def test_a_time_limit_is_judged_by_when_the_worker_ended(how: str, size: int) -> None:
    """A job of 0.3 s with a limit of 1.5 s completes, though the app's loop is blocked for 2 s, or the app is stopped for 3 s."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    app = subprocess.Popen([sys.executable, "-c", FAIR, how, str(size)], stdout=subprocess.PIPE, text=True, env=environment)
    assert app.stdout is not None and app.stdout.readline() == "begun\n"
    if how == "stopped":
        app.send_signal(19)
        asyncio.run(asyncio.sleep(3))  # longer than the time limit
        app.send_signal(18)
    assert app.communicate(timeout=60)[0] == f"completed {size}\n"
