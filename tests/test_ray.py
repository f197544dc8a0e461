"""Workers on Ray: nodes that die, room that is not there, hosts, and what listens. The rest of the worker system's tests run on Ray too."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import engines
import psutil
import pytest
from harness import (  # noqa: F401
    TESTS,
    Gate,
    Seen,
    alive,
    end,
    finish,
    first_chunk,
    gate,
    gone,
    gone_soon,
    manager,
    nothing_left,
    run,
    said_json,
    script,
    until,
)
from repo import ROOT

from cjm_worker_protocols import JobError, RestartPolicy, WorkerConfig
from cjm_worker_protocols.core.errors import ConfigError
from cjm_worker_protocols.extensions.hosts import NO_PID

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'cjm-worker-protocols[ray]'")

from cjm_worker_protocols.engines.ray import (  # noqa: E402
    EngineLoopError,
    RayConnectionError,
    RayElsewhereError,
    RayEngine,
    RayLostError,
    RayMissingError,
    RayVersionError,
    WorkerRefusedError,
    describe_loss,
    start_ray,
    why_waiting,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> None:
    """The Ray of this session."""
    engines.start_ray()


def on_ray(*plugins: Any, **settings: Any) -> Any:
    """A manager whose workers live on Ray."""
    return manager(*plugins, **{"engine": RayEngine(), **settings})


class Watched(RayEngine):
    """An engine whose workers' handles a test can see."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.handles: "list[Any]" = []

    def start_worker(self, config: WorkerConfig, events: Any, placement: Any = None) -> Any:
        self.handles.append(super().start_worker(config, events, placement))
        return self.handles[-1]


# Not there


def test_importing_the_package_imports_no_ray(tmp_path: Path) -> None:
    """Neither the package nor the module of the engine imports Ray."""
    code = "import sys, cjm_worker_protocols.managers.base, cjm_worker_protocols.engines.ray.engine; print('ray' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path, env=env) == "False\n"


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making an engine raises a named ImportError."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayMissingError, match=r"pip install 'cjm-worker-protocols\[ray\]'") as caught:
        RayEngine()
    assert isinstance(caught.value, ImportError)


# Room


def test_a_plugin_has_an_interpreter_of_its_own(tmp_path: Path) -> None:
    """Beside one that has none; each finds what is installed for it, takes its room, and waits for it."""
    venv.create(tmp_path, symlinks=True)
    (next(tmp_path.glob("lib/python*/site-packages")) / "only_there.py").write_text("import sys\ndef prefix(): return sys.prefix\n")

    class Registry:
        configs = {"there": {"worker_python": str(tmp_path / "bin/python"), "worker_resources": {"thing": 2}}, "here": {}}

        def get_plugins_by_category(self, category: Any) -> "list[Any]":
            return [{"id": name, "name": name} for name in self.configs]

        def get_plugin(self, plugin_id: str) -> Any:
            return {"id": plugin_id, "name": plugin_id}

        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {"worker_resources": {"thing": 1}, **self.configs[plugin_id]}

    async def scenario() -> None:
        plugins = {"there": "only_there:prefix", "here": "sample_plugins:prefix"}
        async with on_ray(plugins=plugins, plugin_registry=Registry(), max_workers=2) as m:
            for _ in range(2):
                assert [await (await m.start_job(name)) for name in ("here", "there")] == [sys.prefix, str(tmp_path)]

    run(scenario(), 120)


def test_a_job_waits_for_room_and_says_so() -> None:
    """What a plugin's config asks for is taken; one for which there is no room is pending, visibly, and others pass it."""

    class Registry:
        needs = {"busy": {"thing": 2}, "pid": {"thing": 1}, "echo": {}}

        def get_plugins_by_category(self, category: Any) -> "list[Any]":
            return [{"id": name, "name": name} for name in self.needs]

        def get_plugin(self, plugin_id: str) -> Any:
            return {"id": plugin_id, "name": plugin_id} if plugin_id in self.needs else None

        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {"worker_resources": self.needs[plugin_id]}

    async def scenario() -> None:
        async with on_ray("busy", "pid", "echo", plugin_registry=Registry(), max_workers=3, start_timeout=5) as m:
            seen = Seen(m)
            first = await m.start_job("busy")
            await first_chunk(first)
            waiting = await m.start_job("pid")
            told = await seen.when(lambda e: e.type == "job:queued" and "thing 1" in e.data.get("waiting_for", ""))
            assert told.data["job_id"] == waiting.id and waiting.status == "pending" and "free now: thing 0" in waiting.waiting_for
            assert await (await m.start_job("echo", x=1)) == 1
            await asyncio.sleep(6)  # longer than a worker may take to start
            assert waiting.status == "pending"
            assert await m.cancel_job(first.id)
            assert await waiting > 0 and waiting.waiting_for == ""

    run(scenario(), limit=60)


def test_an_idle_worker_gives_up_its_room() -> None:
    """What an idle worker holds and another plugin needs is given back, also when no more workers may be."""

    async def scenario() -> None:
        for limit in (1, 2):
            engine = RayEngine()
            async with on_ray("pid", "echo", engine=engine, max_workers=limit, standby=True) as m:
                await m.reload_plugin("pid", {"worker_resources": {"thing": 2}})
                await m.reload_plugin("echo", {"worker_resources": {"thing": 1}})
                one = await (await m.start_job("pid"))
                assert await (await m.start_job("echo", x=2)) == 2
                assert await (await m.start_job("pid")) != one

    run(scenario(), limit=60)


def test_each_worker_has_its_own_gpu() -> None:
    """Ray says which through the environment, as it does on a node with real ones; one too many waits."""

    def sees() -> "Iterator[str | None]":
        yield os.environ.get("CUDA_VISIBLE_DEVICES")
        time.sleep(1000)

    async def scenario() -> None:
        async with on_ray(sees, engine=RayEngine(num_gpus=1), max_workers=3) as m:
            jobs = [await m.start_job("sees") for _ in range(3)]
            await until(lambda: "free now: GPU 0" in max(job.waiting_for for job in jobs))
            at_work = await until(lambda: len(found := [job for job in jobs if job.status == "running"]) == 2 and found)
            assert sorted([await first_chunk(job) for job in at_work]) == ["0", "1"]

    run(scenario())


def test_what_no_node_has_is_said() -> None:
    """A need that no node can ever meet is named as that, and the job can be cancelled."""

    async def scenario() -> None:
        async with on_ray("echo", resources={"no_such_thing": 1}) as m:
            job = await m.start_job("echo")
            await until(lambda: "no node of the cluster has that much" in job.waiting_for)
            assert await m.cancel_job(job.id)

    run(scenario())


def test_a_job_that_waits_for_room_takes_nobodys_place(gate: Gate) -> None:
    """With one worker allowed others pass it; when it gets room it keeps that and waits its turn.

    Once it is cancelled nothing is asked of the cluster for it.
    """

    async def scenario() -> None:
        async with on_ray("busy", resources={"thing": 2}) as holder, on_ray("pid", "echo", "wait_at") as m:
            held = await holder.start_job("busy")
            await first_chunk(held)
            await m.reload_plugin("pid", {"worker_resources": {"thing": 1}})
            await m.reload_plugin("echo", {"worker_resources": {"no_such_thing": 1}})
            waits, never = await m.start_job("pid"), await m.start_job("echo")
            await until(lambda: waits.waiting_for and never.waiting_for)
            runs = await m.start_job("wait_at", gate=gate.path)
            await until(lambda: runs.status == "running")
            assert await m.cancel_job(never.id)
            await until(lambda: len(m.workers) <= 2)
            assert sorted(w.pid for w in m.workers) == [0, runs.worker_pid]
            assert await holder.cancel_job(held.id)
            spare = await until(lambda: [w for w in m.workers if w.status == "standby"])  # there is room for the other, which it keeps
            gate.open()
            assert await waits > 0 and waits.started_at >= runs.completed_at and waits.worker_pid == spare[0].pid

    run(scenario(), limit=60)


def test_a_job_that_waits_for_room_takes_the_worker_that_is_free(gate: Gate) -> None:
    """There is room for one such worker, and the next job waits for another.

    When the first has ended the job runs there, though no room was made.
    """

    async def scenario() -> None:
        async with on_ray("busy", resources={"thing": 1}) as holder, on_ray("wait_at", resources={"thing": 1}, max_workers=2) as m:
            await first_chunk(await holder.start_job("busy"))
            first = await m.start_job("wait_at", gate=gate.path)
            await until(lambda: first.status == "running")
            second = await m.start_job("wait_at", gate=gate.path)
            await until(lambda: "free now: thing 0" in second.waiting_for)
            gate.open(2)
            assert (await second)[0] == (await first)[0]

    run(scenario())


@pytest.mark.parametrize("settings", [{"restart": RestartPolicy.NEVER}])
def test_a_worker_that_waits_for_room_hides_no_outage(settings: "dict[str, Any]") -> None:
    """The only worker that there was has crashed and no other comes in its place.

    What waits for room fails too, and asks the cluster for nothing more.
    """

    async def scenario() -> None:
        async with on_ray("busy", resources={"thing": 2}) as holder, on_ray("pid", "crash", **settings) as m:
            await first_chunk(await holder.start_job("busy"))
            await m.reload_plugin("pid", {"worker_resources": {"thing": 1}})
            waits = await m.start_job("pid")
            await until(lambda: waits.waiting_for)
            assert (await end(await m.start_job("crash"))).error.category == "crash"
            error = (await end(waits)).error
            assert error.category == "start" and "the last worker was killed by SIGKILL" in error.message
            await until(lambda: not m.workers)

    run(scenario())


def test_why_a_worker_waits() -> None:
    """Never, not now, or any moment; what is free on several nodes is no room together."""
    nodes: "list[dict[str, Any]]" = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "thing": 1.0}},
        {"Alive": False, "Resources": {"GPU": 1.0}},
    ]
    reason, lacks = why_waiting({"GPU": 1}, nodes, [{"CPU": 2.0}])
    assert "even when it is idle" in reason and not lacks
    assert why_waiting({"CPU": 2}, nodes, [{"CPU": 1.0}, {"CPU": 1.5}]) == ("room on a node for CPU 2 (free now: CPU 1.5)", {"CPU"})
    assert why_waiting({"CPU": 2, "thing": 1}, nodes, [{"CPU": 2.0}, {"CPU": 1.0, "thing": 1.0}])[1] == {"CPU", "thing"}
    for takes in ({"CPU": 2}, {}):
        reason, lacks = why_waiting(takes, nodes, [{"CPU": 1.0}, {"CPU": 2.0}])
        assert "to start" in reason and not lacks
    assert why_waiting({}, nodes[2:], []) == ("a node: none of the cluster is alive", frozenset())


# Deaths


def agent_of(pid: int) -> psutil.Process:
    """The agent of a worker."""
    agent = psutil.Process(pid).parent()
    assert agent is not None
    return agent


def test_a_job_that_was_given_to_a_dead_worker_has_not_run() -> None:
    """The worker has ended, and nobody knows it yet, when its agent gets a job: the job runs on another, and that was no attempt."""

    async def scenario() -> None:
        async with on_ray("pid", backoff_base=0.01) as m:
            pid = await (await m.start_job("pid"))
            agent = agent_of(pid)
            agent.suspend()
            try:
                os.kill(pid, signal.SIGKILL)
                job = await m.start_job("pid")
                assert job.status == "running"
                await asyncio.sleep(0.2)  # the agent has it by then
            finally:
                agent.resume()
            assert await job != pid and job.attempts == 1

    run(scenario())


def test_how_a_worker_ended_is_known_without_a_guardian(tmp_path: Path) -> None:
    """Somebody kills an agent's guardian: the worker's exit code is told all the same, and what the worker leaves behind is ended."""

    def leaves_and_exits() -> "Iterator[int]":
        yield subprocess.Popen(["sleep", "60"], start_new_session=True).pid
        time.sleep(0.5)
        os._exit(3)

    async def scenario() -> None:
        async with on_ray(leaves_and_exits) as m:
            job = await m.start_job("leaves_and_exits")
            left = await first_chunk(job)
            agent = str(agent_of(job.worker_pid).pid)
            (guardian,) = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[-1] == agent]
            guardian.kill()
            await end(job)
            assert (job.error.category, job.error.exit_code) == ("crash", 3), job.error
            assert await gone_soon([left], 3)

    run(scenario())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_agent_takes_its_worker_along(number: int) -> None:
    """When Ray's actor is killed, the worker and its children are gone.

    The job failed as a crash that names the node, and the next one runs.
    """

    async def scenario() -> None:
        engine = Watched()
        async with on_ray("with_children", "pid", engine=engine, backoff_base=0.01) as m:
            job = await m.start_job("with_children")
            pids = await first_chunk(job)
            [worker] = engine.handles
            agent_of(worker.pid).send_signal(number)
            await end(job)
            assert job.error.category == "crash" and f"node {worker.facts['node'][:8]}" in job.error.message, job.error
            assert await gone_soon(pids, 3)
            assert await (await m.start_job("pid")) not in pids

    run(scenario())


def test_nothing_stays_when_the_managers_process_is_killed(tmp_path: Path) -> None:
    """kill -9 of the manager's process: its workers on a cluster that lives on are gone before long, and their children too."""
    source = """
import asyncio, json, sys
import sample_plugins
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.engines.ray import RayEngine

async def main():
    async with JobManager("t", "t", plugins={"p": sample_plugins.with_children}, engine=RayEngine(sys.argv[1])) as m:
        job = await m.start_job("p")
        async for pids in job.stream(): print(json.dumps(pids), flush=True)

asyncio.run(main())
"""
    with script(tmp_path / "main.py", source, address()) as process:
        pids = said_json(process, 60)
        assert alive(pids) == pids
        process.kill()
        assert gone(pids, 10)


def address() -> str:
    """Where the Ray of this session is."""
    return str(ray.get_runtime_context().gcs_address)


SECOND_NODE = """
import json, sys, time
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False
from ray._private.node import Node
from ray._private.parameter import RayParams
params = RayParams(gcs_address=sys.argv[1], node_ip_address="127.0.0.1", num_cpus=2, num_gpus=0, resources={"second": 4},
                   object_store_memory=100_000_000, min_worker_port=0, max_worker_port=0)
node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
print(json.dumps({"raylet": node.all_processes["raylet"][0].process.pid, "node": node.node_id}), flush=True)
time.sleep(600)
"""


def test_a_node_that_dies_amid_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs fail as crashes that name the node, what they streamed can be read, and the next job runs elsewhere.

    No process stays, children neither.
    """
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")

    async def scenario(second: Any) -> None:
        engine = Watched()
        async with on_ray("endless", "with_children", "pid", engine=engine, backoff_base=0.01, max_restarts=8, max_workers=2) as m:
            for plugin in ("endless", "with_children"):
                await m.reload_plugin(plugin, {"worker_resources": {"second": 1}})
            job, other = await m.start_job("endless"), await m.start_job("with_children")
            pids = await first_chunk(other)
            assert [handle.facts["node"] for handle in engine.handles] == 2 * [second["node"]] and alive(pids) == pids
            read = []
            with pytest.raises(JobError) as caught:
                async for pid in job.stream():
                    read.append(pid)
                    if len(read) == 20:
                        os.kill(second["raylet"], signal.SIGKILL)
            for error in (caught.value, (await end(other)).error):
                assert error.category == "crash" and second["node"][:8] in error.message, error
                assert (error.exit_code, error.signal, error.stderr_tail) == (None, None, "")
            assert await gone_soon({*read, *pids}, 5)
            assert await (await m.start_job("pid")) not in read

    with script(tmp_path / "node.py", SECOND_NODE, address()) as process:
        run(scenario(said_json(process, 60)), limit=90)


def test_a_keeper_that_rays_memory_monitor_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node whose monitor finds too little memory the job fails as a crash that names the node and the reason.

    What runs elsewhere goes on.
    """
    for name, value in {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_memory_usage_threshold": "0.001",
        "RAY_memory_monitor_refresh_ms": "4000",
    }.items():
        monkeypatch.setenv(name, value)

    async def scenario() -> None:
        async with on_ray("with_children", "pid", backoff_base=0.01, max_restarts=20, max_workers=2) as m:
            before = await (await m.start_job("pid"))  # it lives where there is enough: there is no other node yet
            with script(tmp_path / "node.py", SECOND_NODE, address()) as process:
                second = await asyncio.to_thread(said_json, process, 60)
                await m.reload_plugin("with_children", {"worker_resources": {"second": 1}})
                job = await m.start_job("with_children")
                pids: "list[int]" = []
                with pytest.raises(JobError):
                    async for streamed in job.stream():
                        pids = streamed
                assert job.error.category == "crash" and "memory" in job.error.message, job.error
                assert second["node"][:8] in job.error.message, job.error
                assert await gone_soon(pids, 5)
                assert await (await m.start_job("pid")) == before

    run(scenario(), limit=90)


# Backpressure


def test_a_reader_that_stays_away_holds_up_the_plugin(tmp_path: Path) -> None:
    """A stream of 100 kB chunks that nobody reads on stops before long; here and on the node little more than the buffer is kept."""
    path = tmp_path / "count"

    async def scenario() -> None:
        async with on_ray("flood_of_chunks", stream_buffer=10, stall_timeout=60) as m:
            job = await m.start_job("flood_of_chunks", path=str(path))
            stream = job.stream()
            await stream.__anext__()
            before, deadline = -1, time.monotonic() + 20
            while before != (now := int(path.read_text())) and time.monotonic() < deadline:
                before = now
                await asyncio.sleep(1)
            assert before < 120
            await asyncio.sleep(1)  # nothing more comes
            assert int(path.read_text()) == before
            for _ in range(200):
                await stream.__anext__()
            assert int(path.read_text()) > before
            await m.cancel_job(job.id)

    run(scenario(), limit=60)


@pytest.mark.parametrize("slow", [0, 100])
def test_a_large_command_amid_a_stream_holds_up_neither(slow: int) -> None:
    """While a worker cannot be told more because it wants to say something, it is heard, also when what it said last was little."""

    def first_slow_then_fast(slow: int, fast: int) -> "Iterator[bytes]":
        for _ in range(slow):
            yield b"little"
            time.sleep(0.01)
        for _ in range(fast):
            yield bytes(10_000)

    async def scenario() -> None:
        async with on_ray(first_slow_then_fast, stream_buffer=5000) as m:
            job = await m.start_job("first_slow_then_fast", slow=slow, fast=2000)
            await first_chunk(job)
            reloads = [asyncio.ensure_future(m.reload_plugin("first_slow_then_fast", {"much": bytes(size)})) for size in (5_000_000, 5)]
            assert len([chunk async for chunk in job.stream()]) == slow + 2000
            assert all(await asyncio.gather(*reloads))

    run(scenario())


# Hosts


class Located:
    """A resource manager that asks to know where workers live."""

    def __init__(self) -> None:
        self.calls: "list[tuple[str, Any]]" = []

    def locate_worker(self, pid: int, host: str, host_pid: int, facts: "dict[str, Any]") -> None:
        self.calls.append(("locate", (pid, host, host_pid, facts)))

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.calls.append(("register", pid))

    def unregister_worker(self, pid: int) -> None:
        self.calls.append(("unregister", pid))

    def update_worker_state(self, pid: int, **state: Any) -> None:
        pass


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_resource_manager_is_told_where_workers_live(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a worker is registered its host, its pid there and what Ray knows are reported.

    A worker of another host has a number that is no pid.
    """
    if elsewhere:
        monkeypatch.setattr("cjm_worker_protocols.engines.ray.worker.machine", lambda: "another host")
    located = Located()

    async def scenario() -> int:
        async with on_ray("pid", resource_manager=located) as m:
            job = await m.start_job("pid")
            pid: int = await job
            assert (job.worker_pid > NO_PID) if elsewhere else (job.worker_pid == pid)
            return pid

    pid = run(scenario())
    (_, (number, host, host_pid, facts)), *rest = located.calls
    assert (host, host_pid, rest) == (os.uname().nodename, pid, [("register", number), ("unregister", number)])
    assert {"node", "address", "actor", "resources"} <= set(facts) and json.dumps(facts)
    assert (number == pid) is not elsewhere


def test_the_resource_manager_of_this_package_shows_workers_of_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """ProcessResourceManager names their host, and looks at no process of this one."""
    from cjm_worker_protocols.integrations.resources import ProcessResourceManager

    resources = ProcessResourceManager(interval=3600)
    for pid, host in ((NO_PID + 1, "gpu-3"), (os.getpid(), os.uname().nodename)):
        resources.locate_worker(pid, host, os.getpid(), {"node": "abc", "resources": {"GPU": 1}})
        resources.register_worker(pid, "test")
    resources.sample()
    far, near = resources.worker(NO_PID + 1), resources.worker(os.getpid())
    assert far is not None and near is not None
    assert (far.host, far.host_pid, far.facts["node"], far.usage.rss) == ("gpu-3", os.getpid(), "abc", None)
    assert near.host == os.uname().nodename and (near.usage.rss or 0) > 0
    resources.unregister_worker(NO_PID + 1)
    resources.unregister_worker(os.getpid())
    assert resources.snapshot().workers == ()


# Runtime environments


def test_a_runtime_environment_reaches_the_plugins(tmp_path: Path) -> None:
    """Variables, and a package of files and modules, which Ray carries to the node.

    A folder of this machine is refused with Ray's reason.
    """
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as package:
        package.writestr("carried.py", "def here(): return __file__\n")
        package.writestr("words.txt", "carried along")

    def look() -> "tuple[str, str, str | None]":
        import carried

        return carried.here(), open("words.txt").read(), os.environ.get("SAID")

    def engine(folder: str) -> RayEngine:
        return RayEngine(runtime_env={"env_vars": {"SAID": "so"}, "working_dir": folder})

    async def scenario() -> None:
        async with on_ray(look, engine=engine((tmp_path / "package.zip").as_uri())) as m:
            file, words, said = await (await m.start_job("look"))
            assert (words, said) == ("carried along", "so") and os.path.basename(file) == "carried.py"
        async with on_ray(look, engine=engine(str(tmp_path)), max_restarts=0) as m:
            job = await end(await m.start_job("look"))
            assert job.error.category == "start" and str(tmp_path) in job.error.message and "ray.init" in job.error.message, job.error

    run(scenario(), limit=90)


@pytest.mark.parametrize("wrong", [{"pips": ["x"]}, {"pip": 3}, {"conda": "a", "pip": ["b"]}, [("pip", [])]])
def test_a_runtime_environment_that_cannot_be_is_refused_before_anything_starts(wrong: Any) -> None:
    """An unknown key, which Ray would ignore, and what Ray itself refuses."""
    with pytest.raises(ConfigError) as caught:
        RayEngine(runtime_env=wrong)
    assert caught.value.field == "runtime_env"


def test_what_ray_refuses_for_good_fails_at_once() -> None:
    """A worker that can never be is tried once, and the error has the cause; others start as before."""

    async def scenario() -> None:
        engine = RayEngine()
        async with on_ray("pid", engine=engine, max_restarts=50, max_workers=2) as m:
            await m.reload_plugin("pid", {"worker_resources": {"GPU": 1.5}})
            start = time.monotonic()
            job = await end(await m.start_job("pid"))
            assert job.error.category == "start" and "whole" in job.error.message, job.error
            assert WorkerRefusedError.__name__ in job.error.message, job.error
            assert time.monotonic() - start < 15
            with pytest.raises(WorkerRefusedError) as caught:
                engine.start_worker(WorkerConfig(), None, (("GPU", 1.5),))
            assert (caught.value.placement, caught.value.kind) == ({"GPU": 1.5}, "ValueError")
            assert isinstance(caught.value.__cause__, ValueError)
            await m.reload_plugin("pid", {})
            assert await (await m.start_job("pid")) > 0

    run(scenario(), limit=60)


# What differs from workers on this machine


def test_the_docs_list_what_differs() -> None:
    """The page "Where workers live" has just the differences of `engines.DIFFERENT`, and each has its test here."""
    page = json.loads((ROOT / "nbs/explanations/where_workers_live.ipynb").read_text(encoding="utf-8"))
    [section] = [text for cell in page["cells"] if (text := "".join(cell["source"])).startswith("## What differs on Ray")]
    listed = re.findall(r"^- (?:\*\*(.+?)\.\*\* )?", section, re.M)
    assert listed == list(engines.DIFFERENT)
    assert not [test for test in engines.DIFFERENT.values() if test not in globals()]


def test_the_environment_is_that_of_the_node() -> None:
    """Variables are laid over those of Ray's own processes, which say how many threads numeric libraries may use."""

    def variables() -> "dict[str, str]":
        return dict(os.environ)

    async def scenario() -> None:
        for cpus, threads in ((None, "1"), (2, "2")):
            async with on_ray(variables, engine=RayEngine(num_cpus=cpus), env={"OURS": "1"}) as m:
                told = await (await m.start_job("variables"))
                assert (told["OURS"], told["OMP_NUM_THREADS"]) == ("1", threads) and "RAY_JOB_ID" in told

    run(scenario(), limit=60)


def test_an_interpreter_that_is_not_there_is_noticed_on_the_node() -> None:
    """The job fails as a start that names it, after as many tries as are allowed."""

    async def scenario() -> None:
        async with on_ray("pid", python="/no/such/python", max_restarts=1, backoff_base=0.01) as m:
            job = await end(await m.start_job("pid"), 60)
            assert job.error.category == "start" and "/no/such/python" in job.error.message, job.error

    run(scenario(), limit=90)


def test_the_import_path_is_the_managers_then_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the manager's path a worker gets what exists on its node, in order, and then the node's."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path, "/no/such/folder"])

    def path() -> "list[str]":
        return sys.path

    async def scenario() -> None:
        async with on_ray(path) as m:
            told, ours = await (await m.start_job("path")), [p for p in dict.fromkeys(sys.path) if os.path.exists(p)]
            assert "/no/such/folder" not in told and told[: len(ours)] == ours

    run(scenario())


def test_the_second_job_is_sent_when_the_first_has_ended(gate: Gate) -> None:
    """A job that is next waits here, so which jobs were begun is always known."""

    async def scenario() -> None:
        engine = Watched()
        async with on_ray("wait_at", engine=engine) as m:
            gate.open()
            await (await m.start_job("wait_at", gate=gate.path))
            jobs = [await m.start_job("wait_at", gate=gate.path) for _ in range(2)]
            [handle] = engine.handles
            [tag] = handle.withdraw()  # the second; it was not sent
            assert tag > 0
            await m.cancel_job(jobs.pop().id)
            gate.open()
            for job in jobs:
                await job

    run(scenario())


# Connections


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_an_address_where_nothing_listens_fails_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for it for long, or for ever; also when RAY_ADDRESS names it."""
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(RayConnectionError) as caught:
        start_ray(ray, address.format(port))
    assert caught.value.address == address.format(port) and str(port) in caught.value.reason and time.monotonic() - start < 8


OWN_RAY = """
import asyncio, json, os, sys
import ray
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.engines.ray import RayEngine

def look():
    import rfc3987_syntax
    return os.getpid(), rfc3987_syntax.__file__, os.environ.get("PYTHONPATH")

async def main():
    async with JobManager("t", "t", plugins={"look": look}, engine=RayEngine()) as m:
        print(json.dumps([*await (await m.start_job("look")), os.getpid(), ray.get_runtime_context().gcs_address]), flush=True)

asyncio.run(main())
"""


def test_a_ray_of_our_own_is_a_new_and_a_quick_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever RAY_ADDRESS names; and none of its processes imports a module that is slow to, which plugins can import all the same."""
    folder, imported = tmp_path / "installed", tmp_path / "imported"
    folder.mkdir()
    (folder / "rfc3987_syntax.py").write_text(f"import os\nwith open({str(imported)!r}, 'a') as file: print(os.getpid(), file=file)\n")
    path = os.pathsep.join([str(folder), str(ROOT), str(TESTS)])
    dead = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", dead)
    (tmp_path / "main.py").write_text(OWN_RAY)
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    worker, file, seen, app, gcs = json.loads(done.stdout.splitlines()[-1])
    assert gcs != dead and file == str(folder / "rfc3987_syntax.py") and seen == path
    assert set(map(int, imported.read_text().split())) <= {worker, app}


def test_a_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    """Joining it is a named error with both versions, and the job that wanted a worker fails with it, at once."""
    source = """
import asyncio, json, sys
import ray
ray.__version__ = "1.2.3"
from cjm_worker_protocols import JobManager, JobError, WorkerConfig
from cjm_worker_protocols.engines.ray import RayEngine

async def main():
    async with JobManager("t", "t", plugins={"p": print}, engine=RayEngine(sys.argv[1])) as m:
        job = await (await m.start_job("p")).wait()
        print(json.dumps([job.status, job.error.category, job.error.message]), flush=True)

asyncio.run(main())
"""
    with script(tmp_path / "main.py", source, address()) as process:
        status, category, message = said_json(process, 60)
    assert (status, category) == ("failed", "start") and "RayVersionError" in message
    assert "1.2.3" in message and ray.__version__ in message


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Head(NamedTuple):
    """A cluster that was started as people start one."""

    address: str
    client: str  # Its address for `ray://`
    folder: str  # Where it keeps its files, and how its processes are known
    processes: "list[psutil.Process]"

    def kill(self, *names: str) -> None:
        """End its processes of these names, or all, and wait until they are gone."""
        victims = [p for p in self.processes if not names or p.name() in names]
        assert victims
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                pass  # it ended with another
        psutil.wait_procs(victims, timeout=10)


@pytest.fixture(scope="module")
def head() -> "Iterator[Head]":
    """The head of the tests that leave it as it is, and of the last one, which kills its GCS."""
    with a_head() as started:
        yield started


@contextmanager
def a_head() -> "Iterator[Head]":
    """`ray start --head`, with a port for clients; it stays on this machine. A busy machine may need more than one try."""
    for _ in range(3):
        folder = tempfile.mkdtemp(prefix="ray")  # the paths of sockets must be short
        try:
            started, said = _start_head(folder)
            if started is not None:
                yield started
                return
        finally:
            for process in _processes_of(folder):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
            shutil.rmtree(folder, ignore_errors=True)
    raise AssertionError(said)


def _start_head(folder: str) -> "tuple[Head | None, str]":
    """The head, unless it could not be started, and what was said."""
    port, client = free_port(), free_port()
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "ray-client-server-port": client,
        "include-dashboard": "false",
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "dashboard-agent-listen-port": 0,
        "temp-dir": folder,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    command += [f"--{k}={v}" for k, v in options.items()]
    # Without the last, about one in three of the processes that Ray forks for a client dies as it starts
    ours = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "HEAD_OF_TESTS": folder, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    env = {**os.environ, **ours}
    with open(os.path.join(folder, "said"), "w+") as file:
        status = subprocess.call(command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=100)
        file.seek(0)
        said = file.read()
    if status:
        return None, said
    return Head(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", folder, _processes_of(folder)), said


def _processes_of(folder: str) -> "list[psutil.Process]":
    """Those of the head that was started there, with their children, some of which rewrite what they were started with."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("HEAD_OF_TESTS") == folder:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            pass
    return list(found)


def test_a_cluster_is_reached_through_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Head) -> None:
    """`ray://` works from a process that is on no node, through the proxy of `ray start`: jobs, streams, cancelling and leaving."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    source = """
import asyncio, json, sys
import sample_plugins
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.engines.ray import RayEngine

async def main():
    plugins = {"count": sample_plugins.count, "stuck": sample_plugins.stuck}
    address, other = sys.argv[1:]
    async with JobManager("t", "t", plugins=plugins, engine=RayEngine(address)) as m:
        job = await m.start_job("count", n=3)
        chunks = [chunk async for chunk in job.stream()]
        stuck = await m.start_job("stuck")
        async for chunk in stuck.stream(): break
        async with JobManager("t", "t", plugins=plugins, engine=RayEngine(other)) as refused:
            no = await (await refused.start_job("count", n=3)).wait()
        print(json.dumps([job.status, len(chunks), await m.cancel_job(stuck.id), no.error.message]), flush=True)

asyncio.run(main())
"""
    with script(tmp_path / "main.py", source, head.client, head.client + "0") as process:
        status, chunks, cancelled, refused = said_json(process, 120)
        assert (status, chunks, cancelled) == ("completed", 3, True)
        assert "RayElsewhereError" in refused and head.client in refused
        assert finish(process, 60)[0] == 0


def test_a_client_that_the_cluster_could_not_serve_at_once_is_served_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Head
) -> None:
    """The process that Ray starts for a client dies as it starts: the client tries again, and its job never knows."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    source = """
import asyncio, json, sys
import sample_plugins
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.engines.ray import RayEngine

async def main():
    async with JobManager("t", "t", plugins={"echo": sample_plugins.echo}, engine=RayEngine(sys.argv[1])) as m:
        print(json.dumps([await (await m.start_job("echo", x=1))]), flush=True)

asyncio.run(main())
"""
    (proxy,) = [p for p in head.processes if "ray.util.client.server" in p.cmdline()]
    before = set(proxy.children())
    with script(tmp_path / "main.py", source, head.client) as process:
        until = time.monotonic() + 60
        while not (servers := set(proxy.children()) - before):
            assert time.monotonic() < until and process.poll() is None
        servers.pop().kill()
        assert said_json(process, 120) == [1]
        assert finish(process, 60)[0] == 0


LOSES = """
import asyncio, json, os, sys, threading, time
import psutil
import sample_plugins
from cjm_worker_protocols import JobManager, WorkerConfig
from cjm_worker_protocols.engines.ray import RayEngine

def say(*facts): print(json.dumps(facts), flush=True)

def ask(): return json.loads(sys.stdin.readline())

def manager(engine):
    engine.LOST = 2.0
    plugins = {name: getattr(sample_plugins, name) for name in ("with_children", "pid")}
    return JobManager("t", "t", plugins=plugins, engine=engine, worker_config=WorkerConfig(standby=False, backoff_base=0.01))

async def lose(engine, lost):
    m = manager(engine)
    job = await m.start_job("with_children")
    async for pids in job.stream(): break
    waits = await m.start_job("pid")
    lost(pids)
    start = time.monotonic()
    await job.wait()
    await waits.wait()
    ended = time.monotonic()
    await m.shutdown()
    say(ended - start, time.monotonic() - ended, *[fact for e in (job.error, waits.error) for fact in (e.category, e.message)])

def by_the_test(pids):
    say(*pids)
    ask()

def ours(pids):
    say(*pids)
    rays = [p for p in psutil.Process().children(recursive=True) if p.name() in ("gcs_server", "raylet")]
    for p in rays: p.kill()
    say(len(rays))

async def stay(there, over): # and never shut down
    m = manager(RayEngine())
    await (await m.start_job("pid"))
    there.set()
    await asyncio.to_thread(over.wait)
    del m

async def main():
    await lose(RayEngine(sys.argv[1]), by_the_test)
    since = time.monotonic()
    there, over = threading.Event(), threading.Event()
    other = asyncio.create_task(asyncio.to_thread(asyncio.run, stay(there, over)))
    await asyncio.to_thread(there.wait)
    await lose(RayEngine(), ours)
    over.set()
    await other
    async with manager(RayEngine()) as m: say(await (await m.start_job("pid")) > 0)
    while time.monotonic() < since + 75: await asyncio.sleep(1)
    say("alive")

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def loser(head: Head, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Any]":
    """A process that loses one cluster after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        with script(tmp_path_factory.mktemp("loser") / "main.py", LOSES, head.address) as process:
            yield process


def test_a_killed_gcs_ends_jobs(head: Head, loser: Any) -> None:
    """kill -9 of it, while all else of the cluster lives: what runs and what waits ends with a clear error.

    The worker is gone, and the shutdown does not wait.
    """
    pids = said_json(loser, 120)
    assert alive(pids) == pids
    head.kill("gcs_server")
    loser.stdin.write("1\n")
    loser.stdin.flush()
    ended, shut, *told = said_json(loser, 60)
    assert ended < 15 and shut < 8, (ended, shut)
    assert (told[0], told[2]) == ("crash", "start") and "RayLostError" in told[3], told
    assert head.address in told[1] and "was lost" in told[1], told
    assert gone(pids, 10)


def test_a_killed_ray_ends_jobs_and_the_next_engine_starts_another(loser: Any) -> None:
    """kill -9 of all that a Ray of our own is, in a process that has lost a cluster before: the same.

    Another engine works after that, though one was left behind on a loop that is closed.
    """
    pids = said_json(loser, 120)
    assert said_json(loser) == [2]
    ended, shut, *told = said_json(loser, 60)
    assert ended < 30 and shut < 8, (ended, shut)
    assert (told[0], told[2]) == ("crash", "start") and "node" in told[1], told
    assert gone(pids, 10)
    assert said_json(loser, 120) == [True]


def test_a_head_that_dies_whole_ends_the_jobs_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of everything at once, while an app of the cluster and one behind `ray://` stream.

    Their jobs end with a clear error, and their loops are not held up.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    source = """
import asyncio, json, sys, time
import sample_plugins
from cjm_worker_protocols import JobManager, WorkerConfig
from cjm_worker_protocols.engines.ray import RayEngine
from harness import ticking

async def main():
    engine = RayEngine(sys.argv[1])
    engine.LOST = 2.0
    plugins = {name: getattr(sample_plugins, name) for name in ("endless", "pid")}
    m = JobManager("t", "t", plugins=plugins, engine=engine, worker_config=WorkerConfig(standby=False, backoff_base=0.01))
    job = await m.start_job("endless")
    async for pid in job.stream(): break
    waits = await m.start_job("pid")
    print(pid, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    start = time.monotonic()
    async with ticking() as stall:
        await job.wait()
        await waits.wait()
        ended = time.monotonic()
        await m.shutdown()
    facts = [fact for e in (job.error, waits.error) for fact in (e.category, e.message)]
    print(json.dumps([ended - start, time.monotonic() - ended, stall.worst, *facts]), flush=True)

asyncio.run(main())
"""
    with (
        a_head() as head,
        script(tmp_path / "near.py", source, head.address) as near,
        script(tmp_path / "far.py", source, head.client) as far,
    ):
        pids = [said_json(process, 120) for process in (near, far)]
        head._replace(processes=_processes_of(head.folder)).kill()
        for process in (near, far):
            assert process.stdin is not None
            process.stdin.write("1\n")
            process.stdin.flush()
        for process in (near, far):
            ended, shut, stall, *told = said_json(process, 60)
            assert ended < 20 and shut < 8 and stall < 5, (ended, shut, stall)
            assert (told[0], told[2]) == ("crash", "start") and "lost" in told[1] and "RayLostError" in told[3], told
            assert finish(process, 60)[0] == 0
        assert gone(pids, 10)


def test_a_cluster_that_is_lost_ends_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the cluster answers no more, what runs fails as a crash, what waits fails as a start, and the shutdown does not wait."""

    async def scenario() -> None:
        engine = RayEngine()
        engine.LOST = 1.0
        m = on_ray("stuck", "echo", engine=engine, backoff_base=0.01)
        job = await m.start_job("stuck")
        await first_chunk(job)
        waits = await m.start_job("echo")
        raylet = next(p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server")
        raylet.suspend()
        try:
            await end(job)
            assert job.error.category == "crash" and "was lost" in job.error.message
            await end(waits)
            assert waits.error.category == "start" and "RayLostError" in waits.error.message
            start = time.monotonic()
            await m.shutdown()
            assert time.monotonic() - start < 5
        finally:
            raylet.resume()

    run(scenario())


def test_a_program_that_leaves_ray(tmp_path: Path) -> None:
    """It calls `ray.shutdown` while a manager is at work: what runs and what comes ends with a clear error, and no other Ray is started."""
    source = """
import asyncio, json
import ray, sample_plugins
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.engines.ray import RayEngine

async def main():
    m = JobManager("t", "t", plugins={"stuck": sample_plugins.stuck}, engine=RayEngine())
    job = await m.start_job("stuck")
    async for chunk in job.stream(): break
    await asyncio.to_thread(ray.shutdown)
    await job.wait()
    other = await (await m.start_job("stuck")).wait()
    await asyncio.sleep(2 * RayEngine.BEAT)
    print(json.dumps([ray.is_initialized(), *[fact for e in (job.error, other.error) for fact in (e.category, e.message)]]), flush=True)
    await m.shutdown()

asyncio.run(main())
"""
    with script(tmp_path / "main.py", source) as process:
        again, *told = said_json(process, 60)
        assert not again and (told[0], told[2]) == ("crash", "start") and "RayLostError" in told[3], told
        assert finish(process)[0] == 0


def test_another_cluster_is_refused() -> None:
    """A process has one connection: an engine with another address says so.

    One with the same address, under another name or `auto`, uses it.
    """

    async def scenario() -> None:
        async with on_ray("pid", engine=RayEngine("127.0.0.1:1")) as m:
            job = await end(await m.start_job("pid"))
            assert job.error.category == "start" and "RayElsewhereError" in job.error.message, job.error
            assert "'127.0.0.1:1'" in job.error.message and address() in job.error.message
        async with on_ray("pid", engine=RayEngine(address().replace("127.0.0.1", "localhost"))) as m:
            assert await (await m.start_job("pid")) > 0

    run(scenario())
    assert issubclass(RayElsewhereError, RayConnectionError)


def test_an_engine_works_on_one_loop_at_a_time() -> None:
    """A manager on another loop is told so; when the first has ended, also without a shutdown, the engine works on the next."""
    engine = RayEngine()
    left = []

    async def on_another() -> str:
        async with on_ray("pid", engine=engine) as m:
            return str((await end(await m.start_job("pid"))).error)

    async def first() -> None:
        async with on_ray("pid", engine=engine) as m:
            assert await (await m.start_job("pid")) > 0
            told = await asyncio.get_running_loop().run_in_executor(None, run, on_another())
            assert EngineLoopError.__name__ in told
            assert await (await m.start_job("pid")) > 0  # the other's shutdown has closed nothing
        m = on_ray("with_children", engine=engine)  # and never shut down
        left.extend(await first_chunk(await m.start_job("with_children")))

    async def second() -> None:
        async with on_ray("pid", engine=engine) as m:
            assert await (await m.start_job("pid")) > 0
            assert await gone_soon(left, 10)

    run(first())
    run(second())


def test_a_worker_that_is_given_up_holds_no_engine() -> None:
    """When neither the cluster nor an agent answers a shutdown, the manager gives the worker up, and the engine leaves.

    The worker ends when they answer again.
    """

    async def scenario() -> None:
        engine = RayEngine()
        engine.LOST = 3.0
        m = on_ray("stuck", engine=engine, grace_timeout=0.2)
        job = await m.start_job("stuck")
        await first_chunk(job)
        deaf = [agent_of(job.worker_pid), next(p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server")]
        for process in deaf:
            process.suspend()
        try:
            start = time.monotonic()
            await m.shutdown()
            assert time.monotonic() - start < 10 and job.status == "cancelled"
        finally:
            for process in deaf:
                process.resume()
        assert await gone_soon([job.worker_pid], 10)
        async with on_ray("pid", engine=engine) as m:
            assert await (await m.start_job("pid")) > 0

    run(scenario(), limit=60)


def listeners(process: psutil.Process) -> "set[str]":
    """The addresses on which a process and those below it listen."""
    found = set()
    for p in [process, *process.children(recursive=True)]:
        try:
            found |= {c.laddr.ip for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return found


def test_a_ray_of_our_own_listens_on_loopback_only() -> None:
    """Every socket that listens in this process and in all of Ray's has a loopback address."""

    async def scenario() -> None:
        async with on_ray("pid") as m:
            assert await (await m.start_job("pid"))
            found = {address.removeprefix("::ffff:") for address in listeners(psutil.Process())}
            assert found and found <= {"127.0.0.1", "::1"}

    run(scenario())


def test_an_app_outlives_its_clusters(loser: Any) -> None:
    """Ray ends a process that has lost its cluster for a minute; ours goes on. It was lost a few tests ago."""
    assert said_json(loser, 120) == ["alive"]
    assert finish(loser)[0] == 0


# What a loss is called


def test_a_loss_is_one_line() -> None:
    """Ray's long story of a death is cut to a line; an error of ours is told as it is."""
    story = (
        "The actor died unexpectedly before finishing this task.\n"
        "\tclass_name: NodeAgent\n\tnamespace: x\n"
        "The actor died because its node has died."
    )
    told = describe_loss(RuntimeError(story))
    assert "\n" not in told and told.startswith("RuntimeError") and "died" in told
    assert describe_loss(RayLostError(None)) == str(RayLostError(None))
    assert issubclass(RayVersionError, RayConnectionError) and issubclass(RayConnectionError, OSError)


# The last test: the Ray of this session ends before it


def test_a_ray_of_our_own_ends_with_its_engine() -> None:
    """An engine without an address starts a Ray, which is gone when the last engine is closed."""
    engines.stop_ray()
    me, before = psutil.Process(), {p.pid for p in psutil.Process().children(recursive=True)}

    async def scenario() -> None:
        async with on_ray("pid", engine=RayEngine(num_cpus=0.5)) as m, on_ray("pid") as other:
            jobs = [await m.start_job("pid"), await other.start_job("pid")]
            for job in jobs:
                assert await job == job.worker_pid
            rays = [p.pid for p in me.children(recursive=True) if p.name() in ("raylet", "gcs_server") and p.pid not in before]
            async with on_ray("pid", engine=RayEngine("127.0.0.1:1")) as third:
                job = await end(await third.start_job("pid"))
                assert "RayElsewhereError" in job.error.message, job.error
            await m.shutdown()
            assert await (await other.start_job("pid")) == jobs[1].worker_pid
        assert rays and not ray.is_initialized()
        assert await gone_soon(rays, 10)

    run(scenario(), limit=200)
