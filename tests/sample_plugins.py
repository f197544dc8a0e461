"""Plugins for the tests of the worker system. Workers import this file, so it needs the standard library only."""

import asyncio
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, AsyncGenerator, Callable, Generator, Iterator

from cjm_worker_protocols import check_cancel, report_progress

FOREVER = 1000.0  # far more than any test takes


# That work


def echo(x: Any = None) -> Any:
    """Give back what it gets."""
    return x


def anything(**parameters: Any) -> "dict[str, Any]":
    """Give back all parameters."""
    return parameters


def pid() -> int:
    """Tell where it runs."""
    return os.getpid()


def pause(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def env(name: str) -> "str | None":
    """Tell an environment variable."""
    return os.environ.get(name)


def interpreter() -> "tuple[str, str]":
    """Tell which Python runs it."""
    return sys.prefix, sys.executable


def imported() -> "list[str]":
    """Tell which modules this worker has imported."""
    return sorted(sys.modules)


def count(n: int, size: int = 0) -> "Generator[Any, None, str]":
    """Stream numbers, or as many pieces of some size, then say so."""
    for i in range(n):
        yield bytes(size) if size else i
    return f"counted to {n}"


async def slowly(x: Any) -> Any:
    """A coroutine function."""
    await asyncio.sleep(0.001)
    return x


async def count_slowly(n: int, forever: bool = False, marker: str = "") -> "AsyncGenerator[int, None]":
    """An async generator function: stream numbers, then wait for ever if `forever`; leave a marker at the end."""
    try:
        for i in range(n):
            await asyncio.sleep(0.001)
            yield i
        if forever:
            await asyncio.Event().wait()
    finally:
        if marker:
            Path(marker).touch()


class Awaited:
    """Its three methods are async."""

    async def load(self, config: "dict[str, Any]") -> None:
        """Wait, then be loaded."""
        await asyncio.sleep(0.001)
        self.loaded = ["loaded"]

    async def run(self) -> "list[str]":
        """What it has been through."""
        return self.loaded

    async def unload(self) -> None:
        """Wait, then fail, so that it shows."""
        await asyncio.sleep(0.001)
        raise ValueError("it was unloaded")


def fail(message: str = "no") -> None:
    """Raise, not at once."""
    _really_fail(message)


def _really_fail(message: str) -> None:
    raise ValueError(message)


def fail_after(chunks: int) -> "Iterator[int]":
    """Stream a little, then raise."""
    yield from range(chunks)
    raise ValueError("no more")


def progress(*_: Any, steps: int = 4) -> str:
    """Report progress in equal steps."""
    for i in range(steps):
        report_progress((i + 1) / steps, f"step {i + 1}")
    return "done"


def impossible_progress(fraction: float) -> None:
    """Report what cannot be."""
    report_progress(fraction)


def says() -> "Iterator[int]":
    """Print, write to stderr and log, in an order that a test can check."""
    print("printed")
    print("to stderr", file=sys.stderr)
    logging.getLogger("third.party").warning("logged %s", "text")
    logging.getLogger("third.party").info("in detail")
    subprocess.run(["/bin/sh", "-c", "echo from a child; echo child error >&2"], check=True)
    try:
        raise ValueError("ünïcödé")
    except ValueError:
        logging.exception("caught")
    print("no newline at its end", end="")
    yield os.getpid()


def flood(lines: int) -> int:
    """Print a lot."""
    for i in range(lines):
        print(f"line {i} of a flood")
    return lines


def large(size: int) -> bytes:
    """A large result that differs from zeros at both ends."""
    return b"a" + bytes(size - 2) + b"z"


def measure(data: bytes) -> "tuple[int, bytes, bytes]":
    """Look at a large parameter."""
    return len(data), data[:1], data[-1:]


def wait_at(gate: str, tag: Any = None) -> "tuple[int, Any]":
    """Wait until the test opens the gate."""
    report_progress(0.0, "at the gate")
    with open(gate, "rb", buffering=0) as f:
        f.read(1)
    return os.getpid(), tag


class Loaded:
    """Remembers how often, and with what, it was loaded and unloaded; across instances."""

    log: "list[Any]" = []

    def load(self, config: "dict[str, Any]") -> None:
        """Take a config."""
        self.config = config
        self.log.append(["load", config])

    def run(self, **_: Any) -> "dict[str, Any]":
        """Tell what happened so far."""
        return {"pid": os.getpid(), "config": self.config, "log": list(self.log)}

    def unload(self) -> None:
        """Give it back."""
        self.log.append(["unload", self.config])


class Streaming:
    """A class whose run is a generator."""

    def run(self, n: int) -> "Generator[int, None, str]":
        """Stream."""
        yield from range(n)
        return "end"


def loader() -> "dict[str, Any]":
    """A plugin loader, which runs in the worker."""
    return {"echo": echo, "pid": pid, "loaded": Loaded, "by_name": "sample_plugins:count"}


def not_a_catalog() -> int:
    """A plugin loader that gives nothing of use."""
    return 42


class OneAtATime:
    """A plugin of which one job may run at a time."""

    concurrency = 1

    def run(self, seconds: float) -> "tuple[float, float]":
        """Say when it began and when it ended."""
        began = time.monotonic()
        time.sleep(seconds)
        return began, time.monotonic()


def one_at_a_time() -> "dict[str, Any]":
    """A loader that a manager knows by its name alone."""
    return {"large": OneAtATime}


class PluginData:
    """What a plugin manager knows of a plugin."""

    def __init__(self, name: str) -> None:
        self.name = name


class Adapter:
    """A plugin manager in the style of cjm-fasthtml-workers' PluginManagerAdapter."""

    def __init__(self) -> None:
        self.loaded: "dict[str, dict[str, Any]]" = {}
        self.log: "list[str]" = []

    def discover_plugins(self) -> "list[PluginData]":
        """All plugins that can be loaded."""
        return [PluginData("words"), PluginData("plain")]

    def load_plugin(self, plugin_data: PluginData, config: "dict[str, Any]") -> None:
        """Load one."""
        self.log.append(f"load {plugin_data.name}")
        self.loaded[plugin_data.name] = dict(config)

    def execute_plugin(self, plugin_name: str, **params: Any) -> Any:
        """Run one that is loaded."""
        return {"plugin": plugin_name, "config": self.loaded[plugin_name], "log": list(self.log), **params}

    def execute_plugin_stream(self, plugin_name: str, **params: Any) -> "Generator[str, None, Any]":
        """Run one that is loaded, bit by bit."""
        for word in params["text"].split():
            yield word
        return {"plugin": plugin_name, "words": len(params["text"].split())}

    def reload_plugin(self, plugin_name: str, config: "dict[str, Any]") -> None:
        """Load it with another config."""
        self.log.append(f"reload {plugin_name}")
        self.loaded[plugin_name] = dict(config)

    def unload_plugin(self, plugin_name: str) -> None:
        """Forget it."""
        self.log.append(f"unload {plugin_name}")
        del self.loaded[plugin_name]

    def check_streaming_support(self, plugin_name: str) -> bool:
        """Whether it can stream."""
        return plugin_name == "words"


class AsyncAdapter(Adapter):
    """The same, with methods that are async."""

    async def load_plugin(self, plugin_data: PluginData, config: "dict[str, Any]") -> None:  # type: ignore[override]
        """Load one."""
        super().load_plugin(plugin_data, config)

    async def execute_plugin_stream(self, plugin_name: str, **params: Any) -> Any:
        """Run one that is loaded, bit by bit."""
        for word in [*self.log, *params["text"].split()]:
            yield word

    async def unload_plugin(self, plugin_name: str) -> None:  # type: ignore[override]
        """Forget it."""
        super().unload_plugin(plugin_name)


# That have to be stopped


def stuck() -> "Iterator[int]":
    """Yield once, then never end by itself."""
    yield os.getpid()
    time.sleep(FOREVER)


def stuck_quietly() -> None:
    """Never end by itself."""
    time.sleep(FOREVER)


def _stay(busy: bool) -> None:
    """Never come back.

    It is a function of its own, since an exception at the end of a bare loop's round is not always the surrounding `try`'s.
    """
    while busy:
        pass
    time.sleep(FOREVER)


def deaf(busy: bool = False) -> None:
    """Report once, then never end, whatever it is asked."""
    reported = False
    while True:
        try:
            if not reported:
                reported = True
                report_progress(0.5, "deaf")
            _stay(busy)
        except BaseException:
            pass


def ignores_sigterm() -> None:
    """Change the handler for SIGTERM, for good."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report_progress(0.5, "ignoring")
    time.sleep(FOREVER)


def holds_the_gil() -> None:
    """Wait in C code without letting any other thread of Python run."""
    report_progress(0.5, "holding")
    ctypes.PyDLL(None).sleep(int(FOREVER))


def cooperative(marker: "str | None" = None) -> "Iterator[int]":
    """Ask again and again whether it is cancelled."""
    check_cancel()
    yield os.getpid()
    try:
        while True:
            check_cancel()
            time.sleep(0.002)
    finally:
        if marker is not None:
            _write(marker, "cleaned up")


def polite_count() -> "Iterator[int]":
    """Stream for ever, and ask before each chunk whether it is cancelled."""
    i = 0
    while True:
        check_cancel()
        yield i
        i += 1


def cooperative_no_more() -> "Iterator[int]":
    """Ask once whether it is cancelled, then never again."""
    check_cancel()
    yield os.getpid()
    time.sleep(FOREVER)


def tidy(marker: str) -> None:
    """Clean up in `finally`."""
    try:
        report_progress(0.5, "in")
        time.sleep(FOREVER)
    finally:
        _write(marker, "cleaned up")


def tidy_generator(marker: str) -> "Iterator[int]":
    """Stream for ever, and clean up in `finally`."""
    try:
        i = 0
        while True:
            yield i
            i += 1
    finally:
        _write(marker, "cleaned up")


def shrugs(marker: str, how: str) -> None:
    """Go on after a SystemExit, as if nothing had happened, and take long to clean up after the next."""
    with suppress(SystemExit):
        report_progress(0.5, "in")
        time.sleep(FOREVER)
    UNWOUND[how](lambda: _write(marker, "cleaned up"))


def _plainly(clean_up: "Callable[[], None]") -> None:
    try:
        time.sleep(FOREVER)
    finally:
        with suppress(ValueError):
            time.sleep(0.3)
            raise ValueError
        clean_up()


def _with_a_loop(clean_up: "Callable[[], None]") -> None:
    async def last() -> None:
        task = asyncio.ensure_future(asyncio.sleep(FOREVER))
        await asyncio.sleep(0.2)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            time.sleep(0.2)

    try:
        time.sleep(FOREVER)
    finally:
        asyncio.run(last())
        clean_up()


def _into_another(clean_up: "Callable[[], None]") -> None:
    try:
        time.sleep(FOREVER)
    except SystemExit:
        time.sleep(0.3)
        clean_up()
        raise ValueError("no time") from None


def _in_a_generator(clean_up: "Callable[[], None]") -> None:
    def pieces() -> "Iterator[int]":
        try:
            while True:
                yield 1
        finally:
            time.sleep(0.3)
            clean_up()

    for _ in pieces():
        time.sleep(FOREVER)


def _as_it_is_deleted(clean_up: "Callable[[], None]") -> None:
    class Pieces:
        def __iter__(self) -> "Pieces":
            return self

        def __next__(self) -> int:
            return 1

        def __del__(self) -> None:
            time.sleep(0.3)
            clean_up()

    for _ in Pieces():
        time.sleep(FOREVER)


def _afterwards(clean_up: "Callable[[], None]") -> None:
    try:
        time.sleep(FOREVER)
    except BaseException as e:
        kept = e
    time.sleep(0.3)
    clean_up()
    raise kept


def _in_c(clean_up: "Callable[[], None]") -> None:
    try:
        time.sleep(FOREVER)
    finally:
        if ctypes.CDLL(None).usleep(300_000) == 0:
            clean_up()


def _without_a_handler(clean_up: "Callable[[], None]") -> None:
    try:
        time.sleep(FOREVER)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(0.3)
        clean_up()


UNWOUND = {
    "plainly": _plainly,
    "with a loop": _with_a_loop,
    "into another": _into_another,
    "in a generator": _in_a_generator,
    "as it is deleted": _as_it_is_deleted,
    "afterwards": _afterwards,
    "in C": _in_c,
    "without a handler": _without_a_handler,
}


def waits_twice_in_c(marker: str) -> None:
    """Wait for a signal in C code, and then for more, without Python in between; clean up in `finally`.

    Python notices a signal that comes just before a system call no earlier.
    """
    libc = ctypes.CDLL(None)
    try:
        report_progress(0.5, "in")
        libc.qsort(ctypes.create_string_buffer(4), 4, 1, libc.pause)  # each comparison waits for a signal
    finally:
        _write(marker, "cleaned up")


def logs_at_its_end(size: int) -> "Iterator[int]":
    """Yield 3 times, then report without end; when it is stopped, log a lot."""
    yield from range(3)
    try:
        while True:
            report_progress(0.5, "A" * size)
    finally:
        for _ in range(50):
            logging.getLogger("last.words").critical("A" * size)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def with_children(how: str = "stuck", deaf_child: bool = False) -> "Iterator[list[int]]":
    """Start child processes, tell their pids, then end in some way."""
    script = "trap '' TERM; echo ready; while :; do sleep 1000; done" if deaf_child else "echo ready; sleep 1000; :"
    shell = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE)
    assert shell.stdout is not None
    shell.stdout.readline()
    forked = os.fork()
    if not forked:
        if deaf_child:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            time.sleep(FOREVER)
    yield [os.getpid(), shell.pid, forked]
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    if how == "stuck":
        time.sleep(FOREVER)


def with_session(how: str = "stuck") -> "Iterator[list[int]]":
    """Start a child in a session of its own, and another one whose parent has gone; then stay, or end badly."""
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    daemon = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True, stdout=subprocess.DEVNULL).pid)"
    orphan = subprocess.run([sys.executable, "-c", daemon], stdout=subprocess.PIPE, start_new_session=True, check=True).stdout
    yield [os.getpid(), child.pid, int(orphan)]
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stuck":
        time.sleep(FOREVER)


def forks_and_asks(n: int = 0) -> int:
    """Have a forked child ask all the time whether this job is cancelled."""
    pid = os.fork()
    if not pid:
        for _ in range(2000):
            check_cancel()
        os._exit(0)
    os.waitpid(pid, 0)
    return n


def forks_on(path: str) -> "Iterator[int]":
    """Fork all the time, and tell in a file when it is unwound."""
    try:
        yield os.getpid()
        while True:
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
    finally:
        open(path, "w").close()


def _asks_on() -> None:
    while True:
        try:
            check_cancel()
        except BaseException:
            pass


def leaves_a_thread_that_asks(n: int = 0) -> int:
    """Leave a thread behind that goes on asking whether a job is cancelled."""
    if not any(thread.name == "asks on" for thread in threading.enumerate()):
        threading.Thread(target=_asks_on, name="asks on", daemon=True).start()
    return n


class Late(Exception):
    """Raised by a signal handler of a plugin's own."""


def interrupts_itself(rounds: int = 200) -> int:
    """Report progress for 2 ms, again and again, with an alarm that raises wherever it is."""

    def late(signum: int, frame: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    for _ in range(rounds):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            while True:
                report_progress(0.5, "x" * 1000)
        except Late:
            pass
    return rounds


def reports_on_a_timer(n: int = 20_000) -> int:
    """Report progress in a loop, and from a signal handler that raises nothing too."""
    signal.signal(signal.SIGALRM, lambda *_: report_progress(0.5))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for i in range(n):
        report_progress(i / n)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return n


def asks_on_a_timer() -> str:
    """Ask whether it is cancelled, with an alarm whose handler raises wherever it is."""

    def late(signum: int, frame: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    end = time.monotonic() + 0.004
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0003)
        while time.monotonic() < end:
            try:
                while time.monotonic() < end:
                    check_cancel()
            except Late:
                pass
    except Late:
        pass
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return "asked"
        except Late:
            pass


def forks_while_it_reports(n: int = 100) -> int:
    """Fork again and again while a thread reports; the children come back from here. Tells how many of them hung."""
    going = True

    def report() -> None:
        while going:
            report_progress(0.5)

    thread, hung = threading.Thread(target=report, daemon=True), 0
    thread.start()
    for _ in range(n):
        pid = os.fork()
        if not pid:
            return 0
        end = time.monotonic() + 5
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                hung += 1
                break
            time.sleep(0.001)
    going = False
    thread.join()
    return hung


def interrupted(how: str) -> "Iterator[bytes]":
    """Be interrupted in the middle of a frame by what ends a process, with a thread left behind that does not end."""

    def late(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt if how == "KeyboardInterrupt" else SystemExit("bye")

    threading.Thread(target=time.sleep, args=(FOREVER,)).start()
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    while True:
        yield bytes(1_000_000)


def _busy() -> None:
    end = time.perf_counter() + 0.0005
    while time.perf_counter() < end:
        pass


class _Deleted:
    def __del__(self) -> None:
        _busy()


def loses_exceptions(path: str, where: str) -> "Iterator[int]":
    """Be where an exception would be lost, most of the time, and tell in a file when it is unwound."""
    if where == "fork hooks":
        os.register_at_fork(before=_busy, after_in_parent=_busy)
    try:
        yield os.getpid()
        while True:
            if where == "__del__":
                _Deleted()
                _busy()
            else:
                forks_and_waits()
    finally:
        open(path, "w").close()


def forks_and_waits() -> None:
    """Fork a child that ends at once."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


class Unreadable:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("x",)


def yields_what_cannot_be_read() -> "Generator[Any, None, str]":
    """One such chunk, and then a result that can be read."""
    yield Unreadable()
    return "ok"


def one_buffer(n: int) -> "Iterator[bytearray]":
    """Stream the same buffer again and again, filled anew each time."""
    buffer = bytearray(1)
    for i in range(n):
        buffer[0] = i
        yield buffer


def speaks_for_itself(kind: int, body: bytes, tag: int, times: int = 1) -> str:
    """Put frames of its own making on the worker's socket."""
    from cjm_worker_protocols.core.frames import HEADER

    for fd in range(3, 1000):
        try:
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        if sock.family == socket.AF_UNIX:
            sock.sendall(HEADER.pack(kind, 0, 0, tag, len(body)) * times + body)
            break
    return "spoken"


def hangs_up() -> None:
    """Close all descriptors, the worker's socket too, and live on."""
    os.closerange(3, 1000)
    time.sleep(FOREVER)


# That end badly


def crash(how: str = "kill") -> None:
    """End the whole worker."""
    print(f"about to end by {how}", file=sys.stderr)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "os._exit":
        os._exit(3)
    if how == "SystemExit":
        raise SystemExit(4)
    if how == "sys.exit":
        sys.exit("a message for the exit")
    if how == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if how == "CancelledError":
        raise asyncio.CancelledError
    if how == "GeneratorExit":
        raise GeneratorExit
    if how == "segfault":
        ctypes.string_at(0)
    if how == "abort":
        os.abort()
    if how == "faulthandler":
        getattr(faulthandler, "_sigsegv")()
    if how == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(FOREVER)
    time.sleep(FOREVER)


def crash_first(marker: str, times: int = 1) -> int:
    """End the worker the first few times that it is run, then tell how often that was."""
    with open(marker, "a+", encoding="utf-8") as f:
        f.seek(0)
        runs = len(f.read())
        f.write("x")
    if runs < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return runs


def crash_with_thread(how: str) -> None:
    """End the worker while a thread, which is no daemon, goes on for ever."""
    threading.Thread(target=time.sleep, args=(FOREVER,)).start()
    crash(how)


def exit_with_child() -> None:
    """Exit while multiprocessing would wait for a child at exit."""
    import multiprocessing

    multiprocessing.get_context("fork").Process(target=time.sleep, args=(FOREVER,)).start()
    sys.exit(5)


def dies_after_its_result(x: Any) -> Any:
    """Give a result, and die when it has been sent."""
    from cjm_worker_protocols.worker.channel import Channel

    def die(self: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Channel.receive = die  # type: ignore[assignment]
    return x


def unpicklable() -> Any:
    """A result that cannot leave the process."""
    return threading.Lock()


def unpicklable_chunk() -> "Iterator[Any]":
    """A chunk that cannot leave the process, after one that can."""
    yield 1
    yield threading.Lock()


class OnlyHere:
    """Can be pickled anywhere, and unpickled only where it was."""

    def __init__(self, error: "type[BaseException]" = ValueError) -> None:
        self.error, self.home = error, os.getpid()

    def __reduce__(self) -> "tuple[Any, ...]":
        return _only_in, (self.home, self.error)


def _only_in(home: int, error: "type[BaseException]") -> OnlyHere:
    if os.getpid() != home:
        raise error("only there")
    return OnlyHere(error)


def only_here(error: "type[BaseException]" = ValueError) -> OnlyHere:
    """A result that the manager cannot read."""
    return OnlyHere(error)


def only_here_chunk() -> "Iterator[Any]":
    """A chunk that the manager cannot read."""
    yield OnlyHere()
    time.sleep(FOREVER)


class Grumpy(dict):  # type: ignore[type-arg]
    """A mapping that does not like to be looked at."""

    def items(self) -> Any:
        """Refuse."""
        raise RuntimeError("do not look")

    def __reduce__(self) -> "tuple[Any, ...]":
        return Grumpy, ()


def grumpy() -> Grumpy:
    """A result that raises when it is shown."""
    return Grumpy()


class BadLoad:
    """A plugin whose load does what its config says."""

    def load(self, config: "dict[str, Any]") -> None:
        """Fail, or not."""
        how = config.get("load")
        if how == "raise":
            raise OSError("the model file is missing")
        if how == "hang":
            time.sleep(FOREVER)
        if how:
            crash(how)

    def run(self) -> str:
        """Work."""
        return "fine"


class BadUnload:
    """A plugin that cannot be unloaded."""

    def run(self) -> str:
        """Work."""
        return "fine"

    def unload(self) -> None:
        """Fail."""
        raise OSError("it will not go")


class SlowLoad:
    """Takes its time to load."""

    def load(self, config: "dict[str, Any]") -> None:
        """Wait."""
        time.sleep(0.4)

    def run(self) -> str:
        """Work."""
        return "fine"


# That do odd things to their process


def closes_stdout() -> str:
    """Close what print writes to, down to the descriptor."""
    sys.stdout.close()
    os.close(1)
    return "closed"


def replaces_streams() -> str:
    """Put something else in the place of stdout and stderr."""
    import io

    sys.stdout, sys.stderr = io.StringIO(), None  # type: ignore[assignment]
    return "replaced"


def forks() -> int:
    """Fork, log in the child, and let it end."""
    child = os.fork()
    if not child:
        logging.getLogger("child").critical("from the child")
        report_progress(0.9, "from the child")
        os._exit(0)
    os.waitpid(child, 0)
    return child


def forks_and_returns(how: str = "return") -> int:
    """Fork, and let the child come back into the worker's code."""
    child = os.fork()
    if not child and how == "raise":
        raise ValueError("from the child")
    return child


def ends_what_it_forks(times: int) -> "list[int]":
    """Fork children and send each SIGTERM at once: how many it ended, and how many of them lived on."""
    counts = [0, 0]
    for _ in range(times):
        child = os.fork()
        if not child:
            time.sleep(10)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        counts[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGTERM] += 1
        if counts[1]:
            break
    return counts


def multiprocesses() -> int:
    """Use multiprocessing as a library would."""
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(abs, range(-10, 0)))


def leaves_thread(gate: str) -> int:
    """Leave a thread, which is no daemon, to print and to report when the gate opens."""

    def later() -> None:
        with open(gate, "rb", buffering=0) as f:
            f.read(1)
        print("from the thread that was left")
        report_progress(0.5, "from the thread that was left")

    threading.Thread(target=later).start()
    return os.getpid()


def leaves_endless_thread() -> int:
    """Leave a thread, which is no daemon, that never ends."""
    threading.Thread(target=time.sleep, args=(FOREVER,)).start()
    return os.getpid()


def threads_report(threads: int, times: int) -> int:
    """Report progress and log from several threads at once."""

    def work() -> None:
        for i in range(times):
            report_progress(i / times, "x" * 1000)
            logging.getLogger("thread").info("y" * 1000)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return threads * times


def reads_stdin() -> str:
    """Read what there is to read."""
    return sys.stdin.read()


def nested(plugin: str) -> Any:
    """Run a job on a manager of its own."""

    async def inner() -> Any:
        from cjm_worker_protocols import JobManager

        async with JobManager("inner", "tests", plugins={plugin: globals()[plugin]}) as m:
            job = await m.start_job(plugin)
            while job.status == "pending":
                await asyncio.sleep(0.005)
            report_progress(0.5, "the inner job runs")
            return await job

    return asyncio.run(inner())


def mutes_logging() -> str:
    """Take logging into its own hands, as some libraries do."""
    logging.basicConfig(force=True, stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("own").warning("by its own handler")
    return "mine"


def chdir(path: str) -> str:
    """Go elsewhere."""
    os.chdir(path)
    return os.getcwd()


# For the chaos test


def chaotic(log: str, tag: int, how: str, seconds: float = 0.0) -> "Generator[int, None, int]":
    """Note in the log that it runs, then do what `how` says."""
    _note(log, tag)
    if how == "stream":
        for i in range(50):
            yield i
    if how == "polite":
        while True:
            check_cancel()
            time.sleep(0.001)
    if how == "raise":
        raise ValueError(str(tag))
    if how in ("kill", "os._exit", "SystemExit"):
        crash(how)
    time.sleep(seconds)
    return tag


def chaotic_function(log: str, tag: int, how: str, seconds: float = 0.0) -> int:
    """The same without streaming, as another plugin."""
    _note(log, tag)
    report_progress(0.5, how)
    if how == "raise":
        raise ValueError(str(tag))
    if how in ("kill", "os._exit", "SystemExit"):
        crash(how)
    time.sleep(seconds)
    return tag


def _note(log: str, tag: int) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{tag}\n".encode())
    os.close(fd)


def busy(seconds: float = 60) -> "Iterator[int]":
    """Say that it runs, and go on for long."""
    yield os.getpid()
    time.sleep(seconds)


def endless() -> "Iterator[int]":
    """A stream that goes on."""
    while True:
        yield os.getpid()
        time.sleep(0.01)


def flood_of_chunks(path: str, size: int = 100_000) -> "Iterator[bytes]":
    """Stream for ever, and keep a count of what is yielded."""
    count = 0
    while True:
        count += 1
        with open(path + "~", "w") as file:
            file.write(str(count))
        os.replace(path + "~", path)
        yield b"x" * size


def prefix() -> str:
    """Where the worker's interpreter lives."""
    return sys.prefix
