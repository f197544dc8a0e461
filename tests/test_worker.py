"""The worker process, driven over its own socket: what it inherits, what plugins do to it, and what it says."""

import asyncio
import faulthandler
import fcntl
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import finish, manager, script
from repo import ROOT

from cjm_worker_protocols.core.frames import LARGE, LAST_KINDS, Frame, FrameReader, Kind, encode
from cjm_worker_protocols.engines.connection import Claims
from cjm_worker_protocols.worker.channel import Channel, ClaimReader
from cjm_worker_protocols.worker.plugins import AdaptedPlugin, PluginTable, pack

needs_loops = pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio.get_event_loop makes no loop")


class Ended(NamedTuple):
    """What a worker said of one job."""

    kind: Kind
    value: Any
    frames: "list[Frame]"

    def all(self, kind: Kind) -> "list[Any]":
        """The values of its frames of a kind."""
        return [frame.value() for frame in self.frames if frame.kind == kind]

    @property
    def chunks(self) -> "list[Any]":
        """What it streamed."""
        return [chunk for chunks in self.all(Kind.CHUNK) for chunk in chunks]

    @property
    def printed(self) -> "list[tuple[str, str]]":
        """What it printed."""
        return [(stream, line) for stream, text in self.all(Kind.OUTPUT) for line in text.split("\n")]


class WorkerLost(Exception):
    """The worker closed its end."""


class Driven:
    """A worker process without a manager."""

    def __init__(
        self, *plugins: "Callable[..., Any] | type", source: Any = None, level: int = 30, fd: int = -1, prelude: str = "pass", **popen: Any
    ) -> None:
        self.sock, theirs = socket.socketpair()
        if fd >= 0:
            os.dup2(theirs.fileno(), fd)
            theirs.close()
        number = fd if fd >= 0 else theirs.fileno()
        reader, self.claims = socket.socketpair()
        self.reads = read = reader.fileno()  # the claims, in the worker
        main = f"{prelude}; from cjm_worker_protocols.worker.main import main; main({number}, {read})"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        fds = {"pass_fds": [number, read], "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", main], start_new_session=True, env=env, **{**fds, **popen})
        reader.close()
        os.close(fd) if fd >= 0 else theirs.close()
        self.reader, self.frames, self.tag = FrameReader(), list[Frame](), 0
        loader = source or pack("loader", PluginTable({plugin.__name__: plugin for plugin in plugins}))
        self.send(Kind.INIT, 0, (None, loader, level))
        self.ready = self.receive()

    def send(self, kind: Kind, tag: int = 0, value: Any = None) -> None:
        """Send a frame."""
        self.sock.sendall(encode(kind, tag, value))

    def receive(self, within: float = 20.0) -> Frame:
        """The next frame."""
        deadline = time.monotonic() + within
        while not self.frames:
            assert select.select([self.sock], [], [], max(0.0, deadline - time.monotonic()))[0], "the worker says nothing"
            try:
                count = self.sock.recv_into(self.reader.space())
            except ConnectionResetError:
                count = 0
            if not count:
                raise WorkerLost
            self.frames += self.reader.received(count)
        return self.frames.pop(0)

    def start(self, plugin: str, config: "dict[str, Any] | None" = None, stream: bool = True, **parameters: Any) -> int:
        """Give it a job."""
        self.tag += 1
        self.claims.send(self.tag.to_bytes(8, "big"))
        self.send(Kind.RUN, self.tag, (plugin, plugin, config or {}, stream, parameters))
        return self.tag

    def until(self, *kinds: Kind) -> "list[Frame]":
        """All frames until one of these kinds."""
        found = [self.receive()]
        while found[-1].kind not in kinds:
            found.append(self.receive())
        return found

    def job(self, plugin: str, config: "dict[str, Any] | None" = None, **parameters: Any) -> Ended:
        """Run a job to its end."""
        self.start(plugin, config, **parameters)
        return self.ended()

    def ended(self) -> Ended:
        """The end of the job that runs."""
        frames = self.until(*LAST_KINDS)
        return Ended(Kind(frames[-1].kind), frames[-1].value(), frames)

    def result(self, plugin: str, config: "dict[str, Any] | None" = None, **parameters: Any) -> Any:
        """The result of a job that completes."""
        ended = self.job(plugin, config, **parameters)
        assert ended.kind == Kind.RESULT, ended.value
        return ended.value

    def close(self) -> "tuple[int, str]":
        """Stop it; its exit code, and what it wrote on its own stderr."""
        try:
            self.send(Kind.STOP)
        except OSError:
            pass
        try:
            _, err = self.process.communicate(timeout=10)
        finally:
            self.process.kill()
            self.process.wait()
            self.sock.close()
            self.claims.close()
        return self.process.returncode, (err or b"").decode()


@contextmanager
def driven(*plugins: Any, **options: Any) -> "Iterator[Driven]":
    """A worker that ends cleanly."""
    worker = Driven(*plugins, **options)
    try:
        yield worker
    except BaseException:
        worker.process.kill()
        print(worker.close()[1])
        raise
    assert worker.close() == (0, "")


# What it says


def test_ready_names_the_version_of_python() -> None:
    """The manager can compare minor versions before it sends anything by value."""
    with driven() as worker:
        assert worker.ready.kind == Kind.READY
        assert worker.ready.value() == (worker.process.pid, os.uname().nodename)


@pytest.mark.parametrize("size, announced", [(LARGE - 1000, 0), (LARGE, 1), (3_000_000, 1)])
def test_a_large_result_is_announced(size: int, announced: int) -> None:
    """`FINISHED` comes before its first byte, with the job's number; small results need none."""

    def large(size: int) -> bytes:
        return bytes(size)

    with driven(large) as worker:
        ended = worker.job("large", size=size)
        assert [frame.kind for frame in ended.frames].count(Kind.FINISHED) == announced
        assert len(ended.value) == size and {frame.tag for frame in ended.frames} == {1}
        assert not announced or ended.frames[-2].kind == Kind.FINISHED


# What it inherits


def test_no_descriptor_is_too_high() -> None:
    """With more than 1,024 descriptors open in the app the socket has a high number; `check_cancel` works, and hears a cancel."""

    def asks() -> "Iterator[int]":
        from cjm_worker_protocols import check_cancel

        check_cancel()
        yield 1
        while True:
            check_cancel()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with driven(asks, fd=2000) as worker:
            tag = worker.start("asks")
            worker.until(Kind.CHUNK)
            worker.send(Kind.CANCEL, tag)
            assert worker.ended().kind == Kind.CANCELLED
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def block() -> None:
    """Block signals, as an app does that waits for them on a thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def ignore() -> None:
    """Ignore signals."""
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def unwinds(marker: str) -> "Iterator[str]":
    """Never end, and clean up."""
    try:
        yield "started"
        time.sleep(1000)
    finally:
        Path(marker).touch()


@pytest.mark.parametrize("inherited", [block, ignore], ids=["blocked", "ignored"])
def test_signals_of_the_app_are_not_inherited(inherited: "Callable[[], None]", tmp_path: Path) -> None:
    """Blocked or ignored in the app: in the worker children have their exit codes, alarms ring, and SIGTERM unwinds the plugin."""

    def child() -> "tuple[int, bool]":
        rang = []
        signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        code = subprocess.run([sys.executable, "-c", "import time; time.sleep(0.1); raise SystemExit(3)"]).returncode
        return code, bool(rang)

    worker = Driven(child, unwinds, preexec_fn=inherited)
    assert worker.result("child") == (3, True)
    worker.start("unwinds", marker=str(tmp_path / "marker"))
    worker.until(Kind.CHUNK)
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.process.wait(5) == 143 and (tmp_path / "marker").exists()
    worker.close()


def test_what_a_job_does_to_signals_does_not_reach_the_next(tmp_path: Path) -> None:
    """One job ignores and blocks SIGTERM and SIGURG; the next one is unwound and woken by them all the same."""

    def ignores() -> str:
        for number in (signal.SIGTERM, signal.SIGURG):
            signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        return "ignoring"

    def can_be_woken() -> bool:
        return callable(signal.getsignal(signal.SIGURG)) and signal.SIGURG not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    worker = Driven(ignores, can_be_woken, unwinds)
    assert worker.result("ignores") == "ignoring" and worker.result("can_be_woken")
    worker.start("unwinds", marker=str(tmp_path / "marker"))
    worker.until(Kind.CHUNK)
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.process.wait(5) == 143 and (tmp_path / "marker").exists()
    worker.close()


@pytest.mark.parametrize("timer", ["ITIMER_REAL", "ITIMER_PROF", "ITIMER_VIRTUAL", "faulthandler"])
def test_an_alarm_of_a_job_does_not_hit_the_next(timer: str) -> None:
    """A job sets a timer and ends before it rings."""

    def sets_a_timer(timer: str, how: str) -> str:
        def ring(*_: Any) -> None:
            raise KeyboardInterrupt("too late")

        for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGVTALRM):
            signal.signal(number, ring)
        if timer == "faulthandler":
            faulthandler.dump_traceback_later(0.05, exit=True)
        else:
            signal.setitimer(getattr(signal, timer), 0.05, 0.05)
        if how == "fails":
            raise ValueError(how)
        return how

    def works() -> str:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            pass
        return "worked"

    with driven(sets_a_timer, works) as worker:
        assert worker.job("sets_a_timer", timer=timer, how="ends").kind == Kind.RESULT
        assert worker.result("works") == "worked"
        assert worker.job("sets_a_timer", timer=timer, how="fails").kind == Kind.FAILED
        assert worker.result("works") == "worked"


def test_the_blocking_mode_of_descriptors_may_change() -> None:
    """Socket and outputs become non-blocking, and the claims blocking: results are whole, and a withdrawn job is passed over."""

    def flips() -> bytes:
        for fd in range(1, 64):
            try:
                mode = fcntl.fcntl(fd, fcntl.F_GETFL)
            except OSError:
                continue
            fcntl.fcntl(fd, fcntl.F_SETFL, mode ^ os.O_NONBLOCK)
        return b"x" * 3_000_000

    def modes() -> "list[bool]":
        return [os.get_blocking(1), os.get_blocking(2)]

    with driven(flips, modes) as worker:
        worker.start("flips")
        time.sleep(0.3)  # the socket is full
        assert worker.ended().value == b"x" * 3_000_000
        worker.tag += 1
        worker.send(Kind.RUN, worker.tag, ("modes", "modes", {}, True, {}))  # its claim was withdrawn
        worker.send(Kind.UNLOAD, 0, ("nothing",))
        assert [frame.kind for frame in worker.until(Kind.REPLY)] == [Kind.REPLY]
        assert worker.result("modes") == [True, True]
        assert worker.result("modes") == [True, True]


def test_defaults_of_the_process_do_not_reach_the_channel() -> None:
    """A job changes the default timeout, the warning filters, the locale and the recursion limit: the next ones are as ever."""

    def changes() -> str:
        import locale
        import warnings

        socket.setdefaulttimeout(0.001)
        warnings.simplefilter("error")
        locale.setlocale(locale.LC_ALL, "C")
        sys.setrecursionlimit(120)
        return "changed"

    def fails() -> None:
        raise ValueError("naïve")

    def waits() -> "Iterator[bytes]":
        time.sleep(0.1)
        print("naïve")
        yield bytes(100_000)

    with driven(changes, waits, fails, prelude="import socket; socket.setdefaulttimeout(0.02)") as worker:
        assert worker.result("changes") == "changed"
        time.sleep(0.05)  # the worker waits for a job, longer than the timeout
        ended = worker.job("waits")
        assert ended.kind == Kind.RESULT and ended.chunks == [bytes(100_000)] and ended.printed == [("stdout", "naïve")]
        assert worker.job("fails").value[:2] == ("exception", "ValueError: naïve")


# Exceptions


class Panic(BaseException):
    """What a library in another language may raise."""


class Model:
    """Counts its runs."""

    def load(self, config: "dict[str, Any]") -> None:
        """Load, or raise."""
        if config.get("load"):
            raise Panic("load")
        self.runs = 0

    def run(self, how: str = "") -> Any:
        """Raise what is no `Exception`, in one of many ways."""
        self.runs += 1
        if how == "panic":
            raise Panic("called `Option::unwrap()` on a `None` value")
        if how == "GeneratorExit":
            raise GeneratorExit
        if how == "CancelledError":
            raise asyncio.CancelledError
        if how == "in a loop":
            asyncio.run(self._panics())
        if how == "group":
            from builtins import BaseExceptionGroup  # type: ignore[attr-defined, unused-ignore]

            raise BaseExceptionGroup("two", [Panic("a"), ValueError("b")])
        if how == "stream":
            return self._stream()
        return self.runs

    async def _panics(self) -> None:
        raise Panic("in a coroutine")

    def _stream(self) -> "Iterator[int]":
        yield 1
        raise Panic("in a stream")

    def unload(self) -> None:
        """Raise too."""
        raise Panic("unload")


HOWS = ["panic", "GeneratorExit", "CancelledError", "in a loop", "stream", *(["group"] if sys.version_info >= (3, 11) else [])]


def test_only_an_exit_ends_a_worker() -> None:
    """An exception that is no `Exception` fails its job, in `run`, a stream, `load`, `unload` or a command; the model stays loaded."""
    with driven(Model) as worker:
        for n, how in enumerate(HOWS, 1):
            ended = worker.job("Model", how=how)
            assert ended.kind == Kind.FAILED and ended.value[0] == "exception", how
            assert worker.result("Model", how="") == 2 * n
        assert worker.job("Model", {"load": 1}).value[:2] == ("load", "test_worker.Panic: unload")
        assert worker.job("Model", {"load": 1}).value[:2] == ("load", "test_worker.Panic: load")
        worker.send(Kind.RELOAD, 100, ("Model", "Model", {"load": 2}, True))
        assert worker.until(Kind.REPLY)[-1].value() == (False, "test_worker.Panic: load", [])
        assert worker.result("Model") == 1
        worker.send(Kind.UNLOAD, 101, ("Model",))
        frames = worker.until(Kind.REPLY)
        assert frames[-1].value() == (True, None, []) and frames[0].value()[:2] == (
            "cjm_worker_protocols.worker.plugins",
            logging.ERROR,
        )


@pytest.mark.parametrize("how, code", [("SystemExit", 4), ("KeyboardInterrupt", 130)])
def test_an_exit_ends_a_worker(how: str, code: int) -> None:
    """Those two of the plugin's own end the process, as anywhere."""

    def leaves(how: str) -> None:
        raise SystemExit(4) if how == "SystemExit" else KeyboardInterrupt

    worker = Driven(leaves)
    worker.start("leaves", how=how)
    with pytest.raises(WorkerLost):
        worker.ended()
    assert worker.close()[0] == code


class Bad(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Exits(Exception):
    """Its text ends the process."""

    def __str__(self) -> str:
        sys.exit(4)


class Number(Exception):
    """Its text is no text."""

    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class Notes(Exception):
    """Its notes are none."""

    __notes__ = 7  # type: ignore[assignment]


class NotesRaise(Exception):
    """Its notes raise."""

    @property
    def __notes__(self) -> "list[str]":  # type: ignore[override]
        raise SystemError("notes")


class NoModule(Exception):
    """It comes from nowhere."""


NoModule.__module__ = None  # type: ignore[assignment]


class Caused(Exception):
    """Its cause is none."""

    __cause__ = 7  # type: ignore[assignment]
    __suppress_context__ = True


class Follows(Exception):
    """What came before it raises."""

    @property
    def __context__(self) -> Any:  # type: ignore[override]
        raise Panic("context")


class Hides(Exception):
    """It shows nothing of itself, not even its class."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(5)


class Nameless(type):
    """The metaclass of a type without a name."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Anonymous(Hides, metaclass=Nameless):
    """Its type shows no name either."""


def fails_in_a_module_without_source() -> None:
    """Raise in a module whose loader ends the process when it is asked for the source, as `traceback` does."""

    class Loader:
        def get_source(self, name: str) -> str:
            sys.exit(9)

    module: "dict[str, Any]" = {"__name__": "sourceless", "__loader__": Loader()}
    exec(compile("def fail(): raise ValueError('sourceless')", "sourceless.py", "exec"), module)
    module["fail"]()


def odd(how: str) -> None:
    """Raise something that is hard to describe."""
    simple: "dict[str, Any]" = {
        "str": Bad,
        "exits": Exits,
        "number": Number,
        "notes": Notes,
        "notes raise": NotesRaise,
        "no module": NoModule,
        "memory": MemoryError,
        "cause": Caused,
        "context raises": Follows,
        "hides": Hides,
        "anonymous": Anonymous,
    }
    if how in simple:
        raise simple[how]
    if how == "sourceless":
        fails_in_a_module_without_source()
    if how == "syntax":
        raise SyntaxError("m", ("f", "not a number", None, 7, 1, "x"))
    if how == "source":
        raise SyntaxError("m", (b"f", 10**30, -5, "\udc80\n", 1, 2))
    if how == "long":
        raise ValueError("x" * 20_000_000)
    if how == "surrogate":
        raise ValueError("bad \udcff name \x00")
    error: BaseException = ValueError("first")
    if how == "deep group":
        for _ in range(5000):
            error = ExceptionGroup("g", [error])  # type: ignore[name-defined, type-var, unused-ignore]  # noqa: F821
    for n in range(3000 if how == "chain" else 0):
        following = ValueError(n)
        following.__cause__ = error
        error = following
    for _ in range(20_000 if how == "context" else 0):
        following = KeyError("ValueError")
        following.__context__ = error
        error = following
    if how == "limit":
        sys.setrecursionlimit(60)
        error = ValueError(how)
    if how:
        raise error


ODD = [
    "str",
    "exits",
    "number",
    "notes",
    "notes raise",
    "no module",
    "memory",
    "syntax",
    "source",
    "long",
    "surrogate",
    "chain",
    "context",
    "limit",
    "cause",
    "context raises",
    "hides",
    "anonymous",
    "sourceless",
]


class OddModel:
    """Raises, when it is loaded or unloaded, exceptions that are hard to describe."""

    def load(self, config: "dict[str, Any]") -> None:
        """Load, or raise."""
        odd(config.get("load", ""))
        self.how = config["unload"]

    def run(self) -> str:
        """Work."""
        return "ran"

    def unload(self) -> None:
        """Raise."""
        odd(self.how)


def test_every_exception_can_be_described() -> None:
    """Whatever a plugin raises, its job fails as an exception that names its type, in texts of bounded length, and the worker lives on."""
    types = {
        "str": "Bad",
        "exits": "Exits",
        "number": "Number",
        "notes": "Notes",
        "notes raise": "NotesRaise",
        "no module": "NoModule",
        "memory": "MemoryError",
    }
    types |= {"syntax": "SyntaxError", "source": "SyntaxError"}
    types |= {"cause": "Caused", "context raises": "Follows", "hides": "Hides", "anonymous": "Anonymous"}
    with driven(odd, OddModel) as worker:
        for how in [*ODD, *(["deep group"] if sys.version_info >= (3, 11) else [])]:
            began = time.monotonic()
            category, message, trace = worker.job("odd", how=how).value
            assert time.monotonic() - began < 10, how
            assert category == "exception" and types.get(how, "ExceptionGroup" if how == "deep group" else "ValueError") in message, (
                how,
                message,
            )
            assert len(message) <= 1 << 17 and len(trace) <= 1 << 17, how
        for how in ("notes raise", "cause", "context raises"):
            assert worker.job("OddModel", {"load": how, "unload": ""}).value[0] == "load", how
            assert worker.result("OddModel", {"unload": how}) == "ran", how


# Asyncio


@needs_loops
@pytest.mark.parametrize("before", ["nothing", "coroutine", "run", "closed", "policy"])
def test_a_job_finds_the_loop_state_of_the_first(before: str) -> None:
    """Whatever earlier jobs did with event loops, `asyncio.get_event_loop` works as in a new process, and a policy stays."""

    async def coroutine() -> str:
        return "done"

    class Policy(asyncio.DefaultEventLoopPolicy):  # type: ignore[name-defined, misc, unused-ignore]
        def __init__(self, name: str) -> None:  # one that cannot be made anew without what it was made with
            super().__init__()
            self.name = name

    def prepare(before: str) -> None:
        if before == "run":
            asyncio.run(coroutine())
        if before == "closed":
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            loop.close()
        if before == "policy":
            asyncio.set_event_loop_policy(Policy("kept"))
            asyncio.run(coroutine())

    def old_style() -> "tuple[Any, str]":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            loop = asyncio.get_event_loop()
        result = loop.run_until_complete(coroutine())
        loop.close()
        return result, type(asyncio.get_event_loop_policy()).__name__

    with driven(coroutine, prepare, old_style) as worker:
        if before == "coroutine":
            assert worker.result("coroutine") == "done"
        worker.result("prepare", before=before)
        result, policy = worker.result("old_style")
        assert result == "done" and (policy == "Policy") == (before == "policy")
        assert worker.result("old_style")[0] == "done"


@needs_loops
def test_a_synchronous_run_after_an_async_load() -> None:
    """`load` is a coroutine function, and `run` uses `get_event_loop`."""

    class Mixed:
        async def load(self, config: "dict[str, Any]") -> None:
            await asyncio.sleep(0)

        def run(self) -> Any:
            return asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, "ran"))

    with driven(Mixed) as worker:
        assert [worker.result("Mixed"), worker.result("Mixed")] == ["ran", "ran"]


# Threads


def test_without_threads_a_stream_goes_on() -> None:
    """Where the process may start no more threads, each chunk is sent at once."""

    def streams() -> "Iterator[int]":
        def none(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        threading.Thread.start = none  # type: ignore[method-assign]
        yield from range(5)
        time.sleep(1000)

    worker = Driven(streams)
    worker.start("streams")
    got: "list[int]" = []
    while len(got) < 5:
        frame = worker.receive(within=5)
        got += frame.value() if frame.kind == Kind.CHUNK else []
    assert got == list(range(5))
    worker.process.kill()
    worker.close()


def _speaks_late(gate: str, how: str) -> None:
    from cjm_worker_protocols import check_cancel, report_progress

    def speak() -> None:
        with open(gate, "rb", buffering=0) as file:
            file.read(1)
        report_progress(0.9, "late")
        report_progress(0.9, "late")
        check_cancel()
        print("late")
        logging.getLogger("late").warning("late")

    def starts_another() -> None:
        thread = threading.Thread(target=speak)
        thread.start()
        thread.join()

    if how == "pool":
        import concurrent.futures

        concurrent.futures.ThreadPoolExecutor(1).submit(speak)
    elif how == "timer":
        threading.Timer(0.0, speak).start()
    else:
        threading.Thread(target=starts_another if how == "child" else speak).start()


def _waits(gate: str) -> str:
    """Let the thread of the earlier job speak, then end."""
    from cjm_worker_protocols import report_progress

    with open(gate, "wb", buffering=0) as file:
        file.write(b"x")
    while any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        time.sleep(0.01)
    report_progress(0.1, "mine")
    print("mine")
    return "waited"


@pytest.mark.parametrize("how", ["thread", "child", "timer"])
def test_a_thread_that_a_job_left_does_not_speak_for_the_next(how: str, tmp_path: Path) -> None:
    """Its progress and its `check_cancel` are ignored and logged once; what it prints and logs carries its own job's number."""
    os.mkfifo(gate := tmp_path / "gate")
    with driven(_speaks_late, _waits) as worker:
        worker.result("_speaks_late", gate=str(gate), how=how)
        ended = worker.job("_waits", gate=str(gate))
        assert ended.value == "waited" and ended.all(Kind.PROGRESS) == [(0.1, "mine")] and ended.all(Kind.COOPERATIVE) == []
        said = [
            (frame.tag, frame.kind, frame.value()[0 if frame.kind == Kind.LOG else 1])
            for frame in ended.frames
            if frame.kind in (Kind.OUTPUT, Kind.LOG)
        ]
        assert said == [
            (1, Kind.LOG, "cjm_worker_protocols.worker.context"),
            (1, Kind.OUTPUT, "late"),
            (1, Kind.LOG, "late"),
            (2, Kind.OUTPUT, "mine"),
        ]


def test_a_task_that_a_job_left_in_a_pool_does_not_speak_for_the_next(tmp_path: Path) -> None:
    """The pool's thread was at work when its job ended."""

    def lets_it_speak(gate: str) -> None:
        with open(gate, "wb", buffering=0) as file:
            file.write(b"x")
        time.sleep(0.3)

    os.mkfifo(gate := tmp_path / "gate")
    with driven(_speaks_late, lets_it_speak) as worker:
        worker.result("_speaks_late", gate=str(gate), how="pool")
        ended = worker.job("lets_it_speak", gate=str(gate))
        assert ended.all(Kind.PROGRESS) == [] and {frame.tag for frame in ended.frames if frame.kind in (Kind.OUTPUT, Kind.LOG)} == {1}


def test_threads_that_serve_every_job_speak_for_the_running_one() -> None:
    """A pool that is idle between two jobs, a thread of `load`, and a thread that is given the job's context."""

    class Serves:
        def load(self, config: "dict[str, Any]") -> None:
            import queue
            from concurrent.futures import ThreadPoolExecutor

            self.questions: Any = queue.Queue()
            self.pool = ThreadPoolExecutor(1)
            threading.Thread(target=self.serve, args=(self.questions,), daemon=True).start()
            self.later: Any = None

        def serve(self, questions: Any) -> None:
            while True:
                work, done = questions.get()
                work()
                done.set()

        def ask(self, questions: Any, work: Any) -> None:
            done = threading.Event()
            questions.put((work, done))
            done.wait()

        def run(self, n: int) -> int:
            import contextvars
            import queue

            from cjm_worker_protocols import report_progress

            if self.later is None:
                self.later = queue.Queue()
                threading.Thread(target=self.serve, args=(self.later,), daemon=True).start()
            self.pool.submit(report_progress, 0.1, f"pool {n}").result()
            self.ask(self.questions, lambda: report_progress(0.2, f"load {n}"))
            context = contextvars.copy_context()
            self.ask(self.later, lambda: context.run(report_progress, 0.3, f"context {n}"))
            asyncio.run(asyncio.to_thread(report_progress, 0.4, f"asyncio {n}"))  # type: ignore[arg-type, unused-ignore]
            return n

    with driven(Serves) as worker:
        for n in range(3):
            ended = worker.job("Serves", n=n)
            assert [message for _, message in ended.all(Kind.PROGRESS)] == [
                f"{what} {n}" for what in ("pool", "load", "context", "asyncio")
            ]


# What it prints and logs


def test_progress_bars_and_partial_lines() -> None:
    """What follows the last carriage return of a line is kept; a line written bit by bit is one line; the last one needs no end."""

    def bars() -> None:
        for n in range(101):
            sys.stderr.write(f"\r{n:3d}%|{'#' * (n // 10):10}| {n}/100")
            sys.stderr.flush()
        sys.stderr.write("\n")
        print("Loading weights ", end="", flush=True)
        for _ in range(3):
            print(".", end="", flush=True)
        print(" done\r\nnext\r\n\nlast", end="")
        sys.stderr.write("first")

    def says(text: str) -> None:
        print(text)

    with driven(bars, says) as worker:
        ended = worker.job("bars")
        assert [line for stream, line in ended.printed if stream == "stderr"] == ["100%|##########| 100/100", "first"]
        assert [line for stream, line in ended.printed if stream == "stdout" and line] == ["Loading weights ... done", "next", "last"]
        assert worker.job("says", text="hi").printed == [("stdout", "hi")]


def test_a_line_without_end_is_bounded() -> None:
    """A plugin that never ends its line fills no memory."""

    def endless() -> int:
        for _ in range(100):
            sys.stdout.write("x" * 1000)
            sys.stderr.write("\r" + "y" * 1000)
        return 1

    with driven(endless) as worker:
        printed = worker.job("endless").printed
        assert sum(len(line) for stream, line in printed if stream == "stdout") == 100_000 and len(printed) > 10
        assert [line for stream, line in printed if stream == "stderr"] == ["y" * 1000]


def test_records_keep_time_and_extra_fields() -> None:
    """Time, place, text with traceback, and what `extra=` gave; what the app may not be able to read comes as text."""

    class Own:
        def __repr__(self) -> str:
            return "<own>"

    def logs() -> float:
        before = time.time()
        logging.getLogger("x").warning(
            "hello %s", "you", extra={"step": 3, "path": Path("/tmp"), "own": Own(), "lock": threading.Lock(), "list": [1, {"a": 2.5}]}
        )
        try:
            raise ValueError("ünïcödé")
        except ValueError:
            logging.getLogger("y").exception("failed", stack_info=True)
        return before

    with driven(logs) as worker:
        ended = worker.job("logs")
        (name, level, text, path, line, function, created, extra), second = ended.all(Kind.LOG)
        assert (name, level, text, function) == ("x", logging.WARNING, "hello you", "logs")
        assert path and line > 0 and ended.value <= created < ended.value + 5
        assert extra.pop("lock").startswith("<unlocked") and extra == {
            "step": 3,
            "path": Path("/tmp"),
            "own": "<own>",
            "list": [1, {"a": 2.5}],
        }
        assert "ValueError: ünïcödé" in second[2] and "Stack (most recent call last)" in second[2] and second[7] == {}


@pytest.mark.parametrize("how", ["basicConfig", "force", "dictConfig", "replaced", "cleared"])
def test_a_plugins_own_logging_works(how: str, tmp_path: Path) -> None:
    """Its file gets the records that it asked for, and the app gets them too, once, from its own level on."""

    def logs(how: str, path: str) -> str:
        import logging.config

        if how in ("basicConfig", "force"):
            logging.basicConfig(filename=path, level=logging.DEBUG, force=how == "force")
        elif how == "dictConfig":
            handler = {"class": "logging.FileHandler", "filename": path}
            logging.config.dictConfig({"version": 1, "handlers": {"f": handler}, "root": {"handlers": ["f"], "level": "DEBUG"}})
        else:
            logging.root.handlers = [] if how == "replaced" else logging.root.handlers
            logging.root.handlers.clear()
            logging.root.addHandler(logging.FileHandler(path))
            logging.root.setLevel(logging.DEBUG)
        logging.root.addHandler(logging.StreamHandler())  # a console
        logging.debug("in detail")
        logging.getLogger("x").warning("hello")
        return Path(path).read_text()

    with driven(logs) as worker:
        ended = worker.job("logs", how=how, path=str(tmp_path / "log"))
        assert "in detail" in ended.value and "hello" in ended.value
        assert [record[:3] for record in ended.all(Kind.LOG)] == [("x", logging.WARNING, "hello")] and ended.printed == []


def test_logging_that_stays_within_a_library() -> None:
    """A logger that does not propagate is heard only by its own handlers; a message that cannot be formatted is complained of once."""

    def logs() -> None:
        own = logging.getLogger("own")
        own.propagate = False
        own.addHandler(logging.StreamHandler(sys.stdout))
        own.warning("by itself")
        logging.warning("without any configuration")
        logging.warning("%d", "no number")

    with driven(logs) as worker:
        ended = worker.job("logs")
        assert [record[2] for record in ended.all(Kind.LOG)] == ["without any configuration"]
        assert ("stdout", "by itself") in ended.printed and [line for _, line in ended.printed].count("--- Logging error ---") == 1


def test_the_managers_level_decides() -> None:
    """Records below it stay in the worker, also after a change, unless a plugin changes the level itself."""

    def logs() -> None:
        logging.getLogger("x").info("in detail")

    with driven(logs) as worker:
        assert worker.job("logs").all(Kind.LOG) == []
        worker.send(Kind.LEVEL, 0, logging.INFO)
        assert len(worker.job("logs").all(Kind.LOG)) == 1


# By value


def test_the_traceback_of_a_plugin_of_a_script_shows_its_lines(tmp_path: Path) -> None:
    """The worker knows the file of code that was sent by value, for tracebacks, `inspect` and log records."""
    code = '''\
import inspect
from cjm_worker_protocols import JobError, SyncJobManager

def fails():
    raise ValueError("no such luck")  # this line

def source(): return inspect.getsource(fails)

with SyncJobManager("demo", "demo", plugins={"fails": fails, "source": source}) as manager:
    print(manager.start_job("source").result())
    try: manager.start_job("fails").result()
    except JobError as e: print(e.traceback)
'''
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = f'  File "{tmp_path}/script.py", line 5, in fails\n    raise ValueError("no such luck")  # this line\n'
    assert shown in done.stdout and 'def fails():\n    raise' in done.stdout


def test_modules_registered_by_value_are_sent_by_value(tmp_path: Path) -> None:
    """`cloudpickle.register_pickle_by_value` is respected for plugins and for parameters."""
    import importlib.util

    import cloudpickle

    (tmp_path / "only_here_and_now.py").write_text("def helper(x): return x + 1\ndef run(x): return helper(x)\nclass Box: pass\n")
    spec = importlib.util.spec_from_file_location("only_here_and_now", tmp_path / "only_here_and_now.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["only_here_and_now"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def kind(x: Any) -> str:
        return type(x).__name__

    try:
        with driven(module.run) as worker:
            assert worker.job("run", x=1).value[0] == "load"
        cloudpickle.register_pickle_by_value(module)
        with driven(module.run, kind) as worker:
            assert worker.result("run", x=1) == 2
            assert worker.result("kind", x=module.Box()) == "Box"
    finally:
        if "only_here_and_now" in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["only_here_and_now"]


POOLS = """
import asyncio, sys

def square(n): return n * n

class Number:
    def __init__(self, n): self.n = n

def value(number): return number.n

def double(number):
    if number.n > 1: raise TooLarge(number.n)
    return Number(2 * number.n)

def put(queue, number): queue.put(double(number))

class TooLarge(Exception): pass

def pool(method):
    import multiprocessing
    with multiprocessing.get_context(method).Pool(2) as pool:
        (two,) = pool.map(double, [Number(1)])
        try: pool.apply(double, (two,))
        except TooLarge as e: assert isinstance(two, Number) and e.args == (two.n,)
        return pool.map(square, range(5)), pool.map(value, [Number(1)])

def process(method):
    import multiprocessing
    context = multiprocessing.get_context(method)
    child = context.Process(target=put, args=(queue := context.Queue(), Number(1)))
    child.start()
    number = queue.get(timeout=20)
    child.join()
    return number.n if isinstance(number, Number) else number

def executor(method):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool: return list(pool.map(square, range(5)))

async def main():
    from cjm_worker_protocols import JobManager, WorkerConfig
    plugins = {"pool": pool, "executor": executor, "process": process}
    async with JobManager("t", "c", plugins=plugins, worker_config=WorkerConfig(standby=False)) as manager:
        for method in ("fork", "spawn", "forkserver"):
            for name in plugins: print(await (await manager.start_job(name, method=method)))

if __name__ == "__main__": asyncio.run(main())
"""


def test_a_process_pool_over_a_helper_of_the_same_script(tmp_path: Path) -> None:
    """A plugin of a script uses multiprocessing over functions and classes of the script, as it may in the script itself."""
    with script(tmp_path / "app.py", POOLS) as process:
        assert finish(process, within=60) == (0, "([0, 1, 4, 9, 16], [1])\n[0, 1, 4, 9, 16]\n2\n" * 3, "")


# Plugin managers


class Adapter:
    """A plugin manager whose methods say whether they succeeded."""

    def discover_plugins(self) -> "list[str]":
        """One plugin."""
        return ["words"]

    def load_plugin(self, data: str, config: "dict[str, Any]") -> bool:
        """Succeed, or not."""
        return bool(config.get("works", True))

    def reload_plugin(self, name: str, config: "dict[str, Any]") -> bool:
        """Succeed, or not."""
        return self.load_plugin(name, config)

    def unload_plugin(self, name: str) -> None:
        """Nothing is left."""

    def execute_plugin(self, name: str, **parameters: Any) -> "dict[str, Any]":
        """Work."""
        return parameters


def test_a_load_that_returns_false_has_failed() -> None:
    """Of `load_plugin` and of `reload_plugin`: the job fails as `load`, nothing is loaded, and a mended config recovers."""
    with driven(source=pack("loader", Adapter)) as worker:
        good, bad = {"works": True}, {"works": False}
        for config in (bad, bad):
            ended = worker.job("words", config, stream=False, n=1)
            assert ended.value[0] == "load" and "load_plugin" in ended.value[1] and ended.all(Kind.LOADED) == []
        assert worker.result("words", good, stream=False, n=2) == {"n": 2}
        worker.send(Kind.RELOAD, 99, ("words", "words", bad, False))
        done, reason, loaded = worker.until(Kind.REPLY)[-1].value()
        assert (done, loaded) == (False, []) and "reload_plugin" in reason
        assert worker.result("words", good, stream=False, n=3) == {"n": 3}
        assert worker.job("words", bad, stream=False, n=1).value[0] == "load"
    with pytest.raises(RuntimeError):
        AdaptedPlugin(Adapter(), "words", stream=False).load({"works": False})


# Descriptors that a plugin closes


@pytest.mark.parametrize("then", ["sends", "ends", "reuses"])
def test_a_plugin_that_closes_the_channel_is_named(then: str, tmp_path: Path) -> None:
    """The worker says on stderr what was closed, once, and ends; files that get the same numbers stay empty."""

    def closes(then: str, folder: str) -> "Iterator[int] | int":
        os.closerange(3, 1024)
        if then == "reuses":
            files = [open(Path(folder, str(n)), "w+b") for n in range(8)]
            print("printed")
            return len(files)
        return iter_one() if then == "sends" else 1

    def iter_one() -> "Iterator[int]":
        yield 1

    worker = Driven(closes)
    worker.start("closes", then=then, folder=str(tmp_path))
    with pytest.raises(WorkerLost):
        worker.ended()
    code, said = worker.close()
    assert code == 1 and said.count("the plugin closed the worker's connection to its manager") == 1
    assert all(file.stat().st_size == 0 for file in tmp_path.iterdir())


@pytest.mark.parametrize("which", ["frames", "claims"])
def test_a_plugin_that_replaces_a_socket_of_the_channel_is_named(which: str) -> None:
    """Another socket that gets the number of one of its sockets is noticed after the job, before the next is begun."""

    def replaces(number: int) -> None:
        replaces.sockets = other, _ = socket.socketpair()  # type: ignore[attr-defined]
        os.dup2(other.fileno(), number)

    worker = Driven(replaces, fd=900)
    worker.start("replaces", number=900 if which == "frames" else worker.reads)
    with pytest.raises(WorkerLost):
        worker.ended()
        worker.receive()
    code, said = worker.close()
    assert code == 1 and said.count("the plugin closed the worker's connection to its manager") == 1


@pytest.mark.parametrize("how", ["os.fork", "C"])
def test_a_child_says_nothing_however_it_was_forked(how: str) -> None:
    """Also C code may fork, without Python's hooks: the child sends no frame, and ends where it would receive one."""

    def forks(how: str) -> "int | None":
        import ctypes

        child = os.fork() if how == "os.fork" else ctypes.CDLL(None).fork()
        if not child:
            print("from the child")
            return None
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def works() -> str:
        return "worked"

    with driven(forks, works) as worker:
        ended = worker.job("forks", how=how)
        assert (ended.kind, ended.value, ended.printed) == (Kind.RESULT, 0, [])
        assert worker.result("works") == "worked"


def test_what_a_plugin_holds_back_on_stdout_is_sent_with_its_job() -> None:
    """It sets `sys.stdout` to keep what is written, or puts a buffered file in its place."""

    def holds_back(how: str) -> None:
        import io

        if how == "reconfigured":
            sys.stdout.reconfigure(write_through=False)  # type: ignore[union-attr]
        else:
            sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.buffer), "utf-8")  # type: ignore[type-var]
        print(how)

    with driven(holds_back) as worker:
        for how in ("reconfigured", "replaced"):
            assert worker.job("holds_back", how=how).printed == [("stdout", how)]


def test_a_plugin_that_closes_the_standard_streams() -> None:
    """Daemonizing code closes 0, 1 and 2, and opens other files there: the worker writes nothing to them, and goes on."""

    def closes() -> "list[int]":
        for fd in (0, 1, 2):
            os.close(fd)
        files = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
        print("printed")
        return files

    with driven(closes) as worker:
        ended = worker.job("closes")
        assert ended.value == [0, 1, 2] and ended.printed == [("stdout", "printed")]


# The guardian


def guard(pipe: int) -> "subprocess.Popen[bytes]":
    """A guardian of this process."""
    code = f"import sys; sys.path.append(sys.argv[1]); import guardian; guardian.main({os.getpid()})"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT / "cjm_worker_protocols" / "worker")], stdin=pipe, start_new_session=True
    )


def test_a_guardian_ends_when_the_manager_closes_its_end() -> None:
    """Also while another process holds that end open; a worker that is still listed is killed, one that has ended is not."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(1000)"]
    workers = [subprocess.Popen(sleeping, start_new_session=True) for _ in range(2)]
    ours, theirs = socket.socketpair()
    guardian = guard(theirs.fileno())
    theirs.close()
    try:
        ours.send(f"+{workers[0].pid} a1\n+{workers[1].pid} b2\n-{workers[1].pid} b2\n".encode())
        ours.shutdown(socket.SHUT_WR)
        assert guardian.wait(10) == 0
        assert workers[0].wait(5) == -signal.SIGKILL and workers[1].poll() is None
    finally:
        for process in (*workers, guardian):
            process.kill()
            process.wait()
        ours.close()


async def test_what_a_thread_says_late_is_not_said_of_the_next_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the app its records and lines name the worker, and no job."""
    os.mkfifo(gate := tmp_path / "gate")
    with caplog.at_level(logging.INFO, "cjm_worker_protocols.worker"):
        async with manager(_speaks_late, _waits) as m:
            await (await m.start_job("_speaks_late", gate=str(gate), how="thread"))
            job = await m.start_job("_waits", gate=str(gate))
            assert await job == "waited"
    said = {(record.name.rpartition(".")[2], record.getMessage()): record.job_id for record in caplog.records if hasattr(record, "job_id")}
    assert (said["stdout", "late"], said["late", "late"], said["stdout", "mine"]) == (None, None, job.id)


def test_a_worker_that_skips_a_job_leaves_the_claim_of_the_next() -> None:
    """So that the manager knows that the next one was never begun, should the worker die now."""
    claims = Claims()
    reader = ClaimReader(os.dup(claims.read_end))
    for tag in (8, 9):
        claims.put(tag)
    assert not reader.take(7) and claims.withdraw() == {8, 9}
    claims.put(9)
    assert not reader.take(8) and reader.take(9) and not reader.take(9) and not claims.withdraw()
    claims.close()


def test_a_frame_is_received_while_a_thread_that_a_job_left_sends() -> None:
    """A frame that is on its way from another thread is no torn one: the worker goes on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        sender = threading.Thread(target=channel.send, args=(Kind.OUTPUT, 0, bytes(8 << 20)))  # more than the socket takes
        sender.start()
        select.select([theirs], [], [])
        theirs.sendall(encode(Kind.STOP, 0))
        received = channel.receive()
        assert received is not None and received.kind == Kind.STOP and sender.is_alive()
        theirs.settimeout(0.1)  # after the last byte, the thread lives for a moment
        while sender.is_alive():
            with suppress(TimeoutError):
                theirs.recv(1 << 20)
        sender.join()
