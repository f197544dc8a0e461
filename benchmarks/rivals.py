"""What people would use instead, side by side: one table, everything measured in the same run, servers included.

    python benchmarks/rivals.py             print the table
    python benchmarks/rivals.py --write     and write rivals.json, and from that the table of README.md
    python benchmarks/rivals.py --only ours,loky

"Cannot" is a result, and has its reason. A rival that is not installed is left out, and named on stderr.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from bench import peer, seconds, size
from run import circumstances

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "rivals.json"
BEGIN, END = "<!-- made by rivals.py: begin -->\n", "<!-- made by rivals.py: end -->\n"
LONG = 20.0  # Seconds after which nothing is expected to be seen any more


class Cannot(Exception):
    """The reason why a system cannot do something."""


async def ended(running: "asyncio.Future[Any]") -> None:
    """Wait for an end, and look at how it ended."""
    await asyncio.wait({running}, timeout=LONG)
    if running.done() and not running.cancelled():
        running.exception()


class Contender:
    """One system. What it does not override, it cannot do, for the reasons given here."""

    name = package = ""

    def __init__(self, base: Path) -> None:
        self.base, self._marks = base, 0

    async def start(self) -> None:
        """Start whatever it needs."""

    async def stop(self) -> None:
        """Stop it."""

    async def run(self, call: str, *arguments: Any) -> Any:
        """Run a function, and wait for its result."""
        raise NotImplementedError

    async def cancel(self) -> None:
        """Run a job that spins, and stop it."""
        raise Cannot("no call stops a job that runs")

    async def leave(self, running: "asyncio.Future[Any]") -> None:
        """A client that waits for a job leaves; the app does what it can."""
        running.cancel()

    async def pending(self) -> str:
        """What becomes of pending jobs when the app is killed."""
        raise Cannot("jobs are in the app's memory")

    async def loads(self) -> int:
        """How many loads A B A C A B A takes with room for one."""
        raise Cannot("it does not know what a worker has loaded")

    async def first_chunk(self) -> None:
        """Ask for a stream, and wait for its first chunk."""
        raise Cannot("a job has one result")

    async def began(self, call: str, *arguments: Any) -> "asyncio.Future[Any]":
        """A job that runs by now."""
        self._marks += 1
        mark = self.base / f"{self.package}.{self._marks}"
        running = asyncio.ensure_future(self.run(call, str(mark), *arguments))
        while not mark.exists() and not running.done():
            await asyncio.sleep(0.001)
        return running

    async def killed(self) -> float:
        """SIGKILL the worker while it runs a job; the seconds until the caller has an error."""
        worker = await self.run("pid")
        running = await self.began("spin")
        start = time.perf_counter()
        os.kill(worker, signal.SIGKILL)
        await asyncio.wait({running}, timeout=LONG)
        took = time.perf_counter() - start
        if not running.done():
            running.cancel()
            await self.revive()
            raise Cannot(f"no error within {LONG:g} s: the caller waits on")
        if running.exception() is None:
            raise Cannot("no error")
        await self.revive()
        return took

    async def revive(self) -> None:
        """Make it usable after its worker was killed."""


async def queued(name: str) -> "list[str]":
    """Have an app ask for five jobs and be killed; their ids."""
    app = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rival_apps.killed", name, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    said, _ = await app.communicate()
    assert app.returncode == -signal.SIGKILL and said, app.returncode
    ids: "list[str]" = json.loads(said)
    return ids


class Ours(Contender):
    name, package = "cjm-worker-protocols", "cjm-worker-protocols"

    async def start(self) -> None:
        from rival_apps import functions

        from cjm_worker_protocols import JobManager

        plugins = {function.__name__: function for function in (*functions.FUNCTIONS, functions.stream)}
        self.manager = JobManager("rivals", "all", supports_streaming=True, plugins=plugins)
        await self.run("noop")

    async def stop(self) -> None:
        await self.manager.shutdown()

    async def run(self, call: str, *arguments: Any) -> Any:
        names = {"look": ("data",), "spin": ("mark",), "nap": ("mark", "seconds")}.get(call, ())
        self.job = await self.manager.start_job(call, **dict(zip(names, arguments)))
        return await self.job

    async def cancel(self) -> None:
        running = await self.began("spin")
        await self.manager.cancel_job(self.job.id)
        await ended(running)

    async def leave(self, running: "asyncio.Future[Any]") -> None:
        await self.manager.cancel_job(self.job.id)
        await ended(running)

    async def loads(self) -> int:
        from cjm_worker_protocols import JobManager, WorkerConfig

        log = self.base / "loads"

        def plugin(name: str) -> type:
            class Model:
                def load(self, config: Any) -> None:
                    with open(log, "a") as file:
                        file.write(name)

                def run(self) -> None:
                    """Nothing."""

            return Model

        plugins: Any = {name: plugin(name) for name in "ABC"}
        async with JobManager("rivals", "loads", plugins=plugins, worker_config=WorkerConfig(standby=False)) as manager:
            for job in [await manager.start_job(name) for name in "ABACABA"]:
                await job
        return len(log.read_text())

    async def pending(self) -> str:
        from rival_apps import functions

        from cjm_worker_protocols import JobManager
        from cjm_worker_protocols.integrations.store import SQLiteJobStore

        ids, plugins = await queued("ours"), {function.__name__: function for function in functions.FUNCTIONS}
        async with JobManager("rivals", "kept", plugins=plugins, job_store=SQLiteJobStore(self.base / "ours.db")) as manager:
            for job_id in ids:
                await (await manager.find_job(job_id))
        return "kept, in SQLite, with a job store"

    async def first_chunk(self) -> None:
        job = await self.manager.start_job("stream")
        await job.stream().__anext__()
        await job.wait()


class Pool(Contender):
    name, package = "ProcessPoolExecutor(1)", "python"

    async def start(self) -> None:
        self.pool: Any = ProcessPoolExecutor(1, mp_context=get_context("forkserver"))
        await self.run("noop")

    async def stop(self) -> None:
        self.pool.shutdown(wait=False)

    async def run(self, call: str, *arguments: Any) -> Any:
        from rival_apps import functions

        return await asyncio.get_running_loop().run_in_executor(self.pool, getattr(functions, call), *arguments)

    async def cancel(self) -> None:
        raise Cannot("Future.cancel() does not stop a call that runs, and killing its process breaks the pool for all")

    async def revive(self) -> None:
        await self.stop()
        await self.start()


class Loky(Pool):
    name, package = "loky", "loky"

    async def start(self) -> None:
        import loky

        self.pool = loky.ProcessPoolExecutor(1)
        await self.run("noop")

    async def cancel(self) -> None:
        running = await self.began("spin")
        self.pool.shutdown(wait=False, kill_workers=True)  # with all that its other workers run
        running.cancel()
        await self.start()


class Server(Contender):
    """A system with servers of its own."""

    def serve(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start one."""
        quiet: Any = subprocess.DEVNULL
        server = subprocess.Popen([sys.executable, *command], cwd=HERE, stdout=quiet, stderr=quiet, start_new_session=True)
        self.servers = [*getattr(self, "servers", []), server]
        return server

    async def stop(self) -> None:
        for server in getattr(self, "servers", []):
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
            server.wait()


class Huey(Server):
    name, package = "Huey (SQLite)", "huey"

    async def start(self) -> None:
        from rival_apps import in_huey

        self.app, self.tasks = in_huey.app, in_huey.tasks
        self.serve("-m", "huey.bin.huey_consumer", "rival_apps.in_huey.app", "-w", "1", "-k", "process")
        await self.run("noop")

    async def run(self, call: str, *arguments: Any) -> Any:
        def waits() -> Any:
            return self.tasks[call](*arguments).get(blocking=True, timeout=LONG + 10, backoff=1.0, max_delay=0.001)

        return await asyncio.to_thread(waits)

    async def cancel(self) -> None:
        raise Cannot("revoke() only keeps a job from being begun")

    async def pending(self) -> str:
        for task_id in (await queued("huey"))[1:]:  # the first has no result
            await asyncio.to_thread(self.app.result, task_id, blocking=True, timeout=LONG)
        return "kept, in SQLite"


class Celery(Server):
    name, package = "Celery (Redis)", "celery"

    async def start(self) -> None:
        from rival_apps import in_celery

        self.app, self.tasks = in_celery.app, in_celery.tasks
        self.serve("-m", "celery", "-A", "rival_apps.in_celery", "worker", "-c", "1", "-P", "prefork", "--loglevel=CRITICAL")
        await self.run("noop")

    async def run(self, call: str, *arguments: Any) -> Any:
        self.result = self.tasks[call].delay(*arguments)
        return await asyncio.to_thread(self.result.get, timeout=LONG + 10, interval=0.001)

    async def cancel(self) -> None:
        running = await self.began("spin")
        await self.leave(running)

    async def leave(self, running: "asyncio.Future[Any]") -> None:
        self.app.control.revoke(self.result.id, terminate=True, signal="SIGKILL")
        await ended(running)

    async def pending(self) -> str:
        for task_id in await queued("celery"):
            await asyncio.to_thread(self.app.AsyncResult(task_id).get, timeout=LONG)
        return "kept, in Redis"


class Dbos(Server):
    name, package = "DBOS (SQLite)", "dbos"

    async def start(self) -> None:
        from rival_apps import in_dbos

        self.workflows = await asyncio.to_thread(in_dbos.start)
        await self.run("noop")

    async def stop(self) -> None:
        from dbos import DBOS

        DBOS.destroy()

    async def run(self, call: str, *arguments: Any) -> Any:
        from dbos import DBOS

        return await asyncio.to_thread(lambda: DBOS.start_workflow(self.workflows[call], *arguments).get_result())

    async def cancel(self) -> None:
        raise Cannot("cancel_workflow() takes effect between steps; a step that runs is a thread of the app, which nothing can stop")

    async def killed(self) -> float:
        raise Cannot("there is no worker: jobs run in threads of the app, and what kills one kills the app")

    async def leave(self, running: "asyncio.Future[Any]") -> None:
        raise Cannot("the job runs on in its thread; others run beside it")

    async def pending(self) -> str:
        ids = await queued("dbos")
        command = [sys.executable, "-m", "rival_apps.killed", "finish", *ids]
        app = await asyncio.create_subprocess_exec(*command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        said, _ = await asyncio.wait_for(app.communicate(), LONG)
        assert int(said) == 5, said
        return "kept, in SQLite, and begun anew when the app starts again"

    async def first_chunk(self) -> None:
        from dbos import DBOS

        def first() -> Any:
            return next(iter(DBOS.read_stream(DBOS.start_workflow(self.workflows["stream"]).workflow_id, "chunks")))

        assert await asyncio.to_thread(first) == 1


class LitServe(Server):
    name, package = "LitServe", "litserve"

    async def start(self) -> None:
        import socket

        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            self.ports = one.getsockname()[1], two.getsockname()[1]
        self.serve("-m", "rival_apps.in_litserve", str(self.ports[0]))
        self.serve("-m", "rival_apps.in_litserve", str(self.ports[1]), "stream")
        for _ in range(600):
            try:
                await self.run("noop")
                return await self.first_chunk()
            except (OSError, ValueError):
                await asyncio.sleep(0.1)

    async def revive(self) -> None:
        await self.stop()  # a server goes on without its worker, unless it is asked to start a new one
        self.servers = []
        await self.start()

    async def ask(self, port: int, body: bytes) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
        """POST, and return the connection once the head of the answer has come."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        fields = ("Host: h", "Connection: close", "Content-Type: application/json", f"Content-Length: {len(body)}")
        writer.write("\r\n".join(["POST /predict HTTP/1.1", *fields, "", ""]).encode() + body)
        try:
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
        except BaseException:
            writer.close()
            raise
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise ValueError(answer.split(b"\r\n")[0].decode())
        return reader, writer

    async def run(self, call: str, *arguments: Any) -> Any:
        import base64

        request: "dict[str, Any]" = {"call": call, "arguments": arguments}
        if call == "look":
            request = {"call": call, "data": base64.b64encode(arguments[0]).decode()}
        reader, writer = await self.ask(self.ports[0], json.dumps(request).encode())
        said = await reader.read()
        writer.close()
        return json.loads(said) if said.strip().startswith((b"{", b"[")) or said.strip()[:1].isdigit() else None

    async def first_chunk(self) -> None:
        reader, writer = await self.ask(self.ports[1], b"{}")
        while b"chunk" not in await reader.readline():
            pass
        writer.close()

    async def pending(self) -> str:
        raise Cannot("a request ends with its connection")


class Ray(Contender):
    name, package = "Ray actor", "ray"

    async def start(self) -> None:
        import ray
        from rival_apps import functions

        if not ray.is_initialized():
            importlib.import_module("cjm_worker_protocols.engines.ray").start_ray(ray, None, num_cpus=2, object_store_memory=2_000_000_000)

        class Actor:
            def run(self, call: str, *arguments: Any) -> Any:
                return getattr(functions, call)(*arguments)

            def stream(self) -> Any:
                yield from functions.stream()

        self.ray, self.actor = ray, ray.remote(Actor).remote()
        await self.run("noop")

    async def stop(self) -> None:
        self.ray.shutdown()

    async def run(self, call: str, *arguments: Any) -> Any:
        return await self.actor.run.remote(call, *arguments)

    async def cancel(self) -> None:
        running = await self.began("spin")
        self.ray.kill(self.actor)  # with its state
        await ended(running)
        await self.start()

    async def revive(self) -> None:
        await self.start()

    async def first_chunk(self) -> None:
        async for chunk in self.actor.stream.options(num_returns="streaming").remote():
            await chunk
            return


QUESTIONS: "tuple[tuple[str, str, int], ...]" = (  # What is asked, the measurement, and in how many rounds
    ("no-op round trip", "round_trip", 5),
    ("cancel of a job that spins → next result", "cancel_to_next", 3),
    ("SIGKILL of the worker → error seen", "kill_to_error", 3),
    ("client leaves a job of 5 s → next result", "leave_to_next", 1),
    ("kill -9 of the app: pending jobs", "pending", 1),
    ("A B A C A B A with room for one: loads", "loads", 1),
    ("array of 100 MB as parameter", "array", 2),
    ("first streamed chunk", "first_chunk", 5),
)
MEMORY = "idle memory beside the app"


class Measurements:
    """The questions, asked of one system."""

    def __init__(self, of: Contender, jobs: int, array: Any, nap: float) -> None:
        self.of, self._jobs, self._array, self._nap = of, jobs, array, nap

    async def round_trip(self) -> float:
        start = time.perf_counter()
        for _ in range(self._jobs):
            await self.of.run("noop")
        return (time.perf_counter() - start) / self._jobs

    async def cancel_to_next(self) -> float:
        start = time.perf_counter()
        await self.of.cancel()
        await self.of.run("noop")
        return time.perf_counter() - start

    async def kill_to_error(self) -> float:
        return await self.of.killed()

    async def leave_to_next(self) -> float:
        running = await self.of.began("nap", self._nap)
        start = time.perf_counter()
        await self.of.leave(running)
        await self.of.run("noop")
        return time.perf_counter() - start

    async def pending(self) -> str:
        return await self.of.pending()

    async def loads(self) -> int:
        return await self.of.loads()

    async def array(self) -> float:
        start = time.perf_counter()
        await self.of.run("look", self._array)
        return time.perf_counter() - start

    async def first_chunk(self) -> float:
        start = time.perf_counter()
        await self.of.first_chunk()
        return time.perf_counter() - start


def memory() -> int:
    """The bytes that this process and all below it have for themselves."""
    found = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            found += process.memory_full_info().uss
        except psutil.Error:
            pass
    return found


async def measurements(contenders: "list[Contender]", sizes: "dict[str, Any]") -> "dict[str, dict[str, Any]]":
    """By question and system: the values of all rounds, or the reason why there is none."""
    import numpy as np

    found: "dict[str, dict[str, Any]]" = {question: {} for question, _, _ in QUESTIONS} | {MEMORY: {}}
    array = np.full(sizes["array"], 3, np.uint8)
    started = []
    try:
        for one in contenders:
            before = memory()
            await asyncio.wait_for(one.start(), 90)
            started.append(Measurements(one, sizes["jobs"], array, sizes["nap"]))
            await asyncio.sleep(1)
            found[MEMORY][one.name] = [max(memory() - before, 0)]
        for question, what, rounds in QUESTIONS:
            for _ in range(min(rounds, sizes["rounds"])):
                for asked in started:
                    kept = found[question].setdefault(asked.of.name, [])
                    if isinstance(kept, str):
                        continue
                    try:
                        kept.append(await asyncio.wait_for(getattr(asked, what)(), 90))
                    except Cannot as e:
                        found[question][asked.of.name] = str(e)
                    except Exception as e:
                        found[question][asked.of.name] = f"failed: {type(e).__name__}: {e}"[:200]
                    print(question, "|", asked.of.name, "|", found[question][asked.of.name], file=sys.stderr, flush=True)
    finally:
        for asked in started:
            await asked.of.stop()
    return found


def shown(question: str, value: Any) -> str:
    """A cell of the table."""
    if isinstance(value, str):
        return f"cannot: {value}"
    middle = value[0] if isinstance(value[0], str) else median(value)
    if isinstance(middle, str):
        return middle
    if question == MEMORY:
        return size(middle)
    return f"{middle:g}" if question.endswith("loads") else seconds(middle)


def table(found: "dict[str, dict[str, Any]]") -> str:
    """Markdown, one column for each system; the reasons stand below."""
    names, reasons = list(found[MEMORY]), dict[str, int]()
    lines = [f"| | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for question, values in found.items():
        cells = []
        for name in names:
            text = shown(question, values[name])
            if text.startswith("cannot: "):
                text = f"cannot ({reasons.setdefault(text[8:], len(reasons) + 1)})"
            cells.append(text)
        lines.append(f"| {question} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items())])


def version(package: str) -> str:
    """The version of a rival; empty for the standard library."""
    try:
        return "" if package == "python" else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def section() -> str:
    """The part of README.md that is made from rivals.json."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name.split(' (')[0]} {number}" for name, number in kept["versions"].items() if number)
    return f"{table(kept['rows'])}\n\n{versions}. {kept['circumstances']}\n"


def redis_server(port: int) -> "subprocess.Popen[bytes] | None":
    """One of our own, or None where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        print("skipped: Celery: redis-server is not installed", file=sys.stderr)
        return None
    quiet: Any = subprocess.DEVNULL
    return subprocess.Popen([program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"], stdout=quiet, stderr=quiet)


MODULES = {Ours: "cjm_worker_protocols", Pool: "concurrent.futures", Loky: "loky", Huey: "huey", Celery: "celery", Dbos: "dbos"}
MODULES |= {LitServe: "litserve", Ray: "ray"}


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write rivals.json")
    parser.add_argument("--tiny", action="store_true", help="only see whether it works: what it prints means nothing")
    parser.add_argument("--only", default="", help="modules, separated by commas")
    options = parser.parse_args()
    sizes: "dict[str, Any]" = {"jobs": 20, "rounds": 5, "array": 100_000_000, "nap": 5.0}
    if options.tiny:
        sizes = {"jobs": 2, "rounds": 1, "array": 1000, "nap": 0.5}
    only = options.only.split(",") if options.only else list(MODULES.values())
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda *_: sys.exit("stopped: it takes too long"))  # what was started is stopped on the way out
    signal.alarm(900)
    with tempfile.TemporaryDirectory() as folder:
        port = 20_000 + os.getpid() % 20_000
        os.environ.update(RIVALS_BASE=folder, RIVALS_REDIS=f"redis://127.0.0.1:{port}/0", C_FORCE_ROOT="1")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as users have it
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
        redis = redis_server(port) if "celery" in only else None
        try:
            chosen = [kind for kind, module in MODULES.items() if module in only and peer(module, module)]
            contenders = [kind(Path(folder)) for kind in chosen if kind is not Celery or redis is not None]
            found = asyncio.run(measurements(contenders, sizes))
        finally:
            if redis is not None:
                redis.kill()
                redis.wait()
    print(table(found), circumstances(), sep="\n\n")
    if options.write:
        versions = {one.name: version(one.package) for one in contenders}
        text = json.dumps({"circumstances": circumstances(), "versions": versions, "rows": found}, indent=1, ensure_ascii=False)
        RESULTS.write_text(text + "\n", encoding="utf-8")
        readme = HERE / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{section()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
