"""Simulated workers: they speak the frame protocol as real ones do, and fail as a seed says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from cjm_worker_protocols import WorkerConfig
from cjm_worker_protocols.core.frames import LAST_KINDS, Frame, FrameReader, Kind, OutgoingFrame, encode
from cjm_worker_protocols.engines.base import Exit, WorkerEvents

from .clock import Clock, Happening
from .invariants import Book, Fate

Steps = tuple[tuple[Any, ...], ...]  # What a job does: ("work", seconds), ("chunks", count), …, and an end


@dataclass(frozen=True)
class Faults:
    """Probabilities of what can go wrong with a worker, unless it says otherwise."""

    refuses: float = 0.0  # The engine cannot start it
    slow: float = 0.0  # It takes up to three seconds to start, or for a frame to arrive
    mute: float = 0.0  # It never says READY
    stillborn: float = 0.0  # It dies before it says READY
    sudden: float = 0.0  # It dies within seconds, whatever it does
    stubborn: float = 0.0  # It ignores SIGTERM
    undead: float = 0.0  # It ignores SIGKILL
    torn: float = 0.0  # Its frames arrive in pieces
    garbage: float = 0.0  # It sends something that is not a frame
    hangs_up: float = 0.0  # It closes its connection in the middle of a frame, and lives on
    stray: float = 0.0  # It says something about a job that has ended
    bad_loads: float = 0.0  # Loading a plugin fails, takes long, hangs or kills it
    room: int = 0  # How many workers have room at a time; 0 is no limit, and workers that start at once


class Death(BaseException):
    """Raised within a worker: it ends with this exit code, or by this signal."""

    def __init__(self, code: int | None = None, signal: int | None = None) -> None:
        self.code, self.signal = code, signal


def cut(reader: FrameReader, data: bytes) -> list[Frame]:
    """Cut what arrives into frames, as an engine does."""
    frames, begin, end = list[Frame](), 0, len(data)
    while begin < end:
        space = reader.space()
        size = min(len(space), end - begin)
        space[:size] = data[begin : begin + size] if size < end else data
        frames += reader.received(size)
        begin += size
    return frames


class SimulatedWorker:
    """A worker, and its handle at the same time."""

    host = "simulated"
    facts: Mapping[str, Any] = {}
    HELD = 16  # Frames that wait for a paused manager until the worker has to wait too

    def __init__(self, engine: SimulatedEngine, events: WorkerEvents, place: Hashable, number: int) -> None:
        self.pid, self.place, self.number = 0, place, number
        self._events: WorkerEvents = events
        self._engine, self._clock = engine, engine.clock
        self._rng, self._faults, self._book = engine.rng, engine.faults, engine.book
        self._inbox, self._incoming = deque[Frame](), FrameReader(1024)  # What the manager has sent
        self._requests: dict[int, Any] = {}  # What is asked for with it, by tag
        self.claims = deque[int]()  # Those that it has not taken
        self._again: int | None = None  # The job that was taken back although for the manager it runs
        self._unheard: set[int] = set()  # The tags of jobs that were begun and whose last frame was not handed over
        self._wire, self._unread, self._outgoing = bytearray(), 0, FrameReader(1024)  # What was said and has not arrived
        self._printed: list[str] = []  # What C code has written
        self._frames = deque[Frame]()  # What has arrived and was not handed over
        self._fates: dict[int, Fate] = {}  # By tag
        self._asked: set[int] = set()  # The tags of jobs that were asked to stop
        self.ready = self.dead = self.gone = self._paused = self._hung_up = self._ending = self.asleep = False
        self._stubborn, self.undead = self._likely("stubborn"), self._likely("undead")
        self._job: Fate | None = None
        self.loaded: dict[tuple[str, str], dict[str, Any]] = {}  # The configs of what is loaded; the one used last comes last
        self._size = 1  # How many may be loaded
        self._life = self._live()
        self._next_step: Happening | None = None
        self._coming: dict[str, Happening] = {}  # What will happen to it from outside

    def __repr__(self) -> str:
        return f"worker {self.number}"

    def _likely(self, fault: str) -> bool:
        odds: float = getattr(self._faults, fault)
        return odds > 0 and self._rng.random() < odds

    def _after(self, name: str, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        """Have something happen to it, unless that is coming already."""
        if name not in self._coming:
            self._coming[name] = self._clock.after(delay, self._comes, name, call, arguments)

    def _comes(self, name: str, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        del self._coming[name]
        call(*arguments)

    # The handle: what the manager does with it

    def send(self, data: bytes) -> None:
        self._clock.catch_up()
        if self.gone:
            return
        self._inbox.extend(cut(self._incoming, data))
        if self._inbox[-1].kind == Kind.CANCEL:
            self._asked.add(self._inbox[-1].tag)
        self._wake()

    def give(self, tag: int, frame: OutgoingFrame) -> None:
        self._clock.catch_up()
        if self.gone:
            return
        self.claims.append(tag)
        self.send(bytes(frame))
        self._requests[tag] = request = self._inbox[-1].value()
        self._fates[tag] = fate = self._book.fates[request[4]["n"]]
        again, self._again = tag == self._again, None
        self._book.given(fate, self, again)

    def withdraw(self) -> frozenset[int]:
        self._clock.catch_up()
        tags = frozenset(() if self.gone else self.claims)
        self._again = self.claims[0] if tags and not self._unheard else None
        self.claims.clear()
        for tag in tags:
            self._book.withdrawn(self._fates[tag])
        return tags

    def drain(self) -> None:
        self._clock.catch_up()
        self._receive()
        self._hand_over(drained=True)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._clock.catch_up()
        self._paused = False
        if not self.gone:
            self._after("resumed", 0.0, self._clock.arrive, self._deliver)
            self._wake()

    def terminate(self) -> None:
        self._clock.catch_up()
        if self.dead or self.gone:
            return
        self._ending = True
        self._book.note(self, "is terminated")
        if not self.pid:
            self.kill()
        else:
            self._check_read()
            self._after("terminated", 0.0001, self._terminated)

    def kill(self) -> None:
        self._clock.catch_up()
        if self.dead or self.gone:
            return
        self._book.note(self, "is killed")
        if not self.pid:
            self._after("killed", 0.0, self._clock.arrive, self._ended, Exit())
        elif not self.undead:
            self._after("killed", 0.0001, self.die, None, 9)
        elif self._job is not None and self._job.worker is self:
            self._job.worker = None  # when it is given up, another one may begin its job

    def _check_read(self) -> None:
        """No worker is ended for a job that has ended, as the manager would know had it looked."""
        if self._book.store is not None:
            return  # it may know, and still be writing the end into the store
        asked = [self._fates[tag] for tag in self._asked]
        for fate in self._book.running.values():
            if fate in asked or fate.garbled:
                continue  # the decision was made before, or what it said is lost
            if fate.job is not None and fate.job.worker_pid == self.pid and fate.said is not None:
                self._book.check("read first", self._book.closing, self, "has said", fate.said[0], "of", fate)

    def started(self) -> None:
        """It waits no longer."""
        self._events.on_waiting("")

    # Its surroundings: room, connection and death

    def place_it(self, pid: int) -> None:
        """There is room: the process starts."""
        self.pid = pid
        self._book.note(self, "starts as", pid)
        self._schedule(self._rng.random() * 3 if self._likely("slow") else 0.02)
        if self._likely("sudden"):
            self._after("sudden", self._rng.random() * 5, self.die, *self._rng.choice([(None, 9), (None, 11), (1, None), (0, None)]))

    def waits(self, reason: str) -> None:
        """Say that there is no room."""
        if not self.pid and not self.gone:
            self._events.on_waiting(reason, lambda place: True)

    def say(self, kind: Kind, tag: int, value: Any = None) -> None:
        """Send a frame to the manager; it arrives later."""
        if self._hung_up:
            return
        self._wire += encode(kind, tag, value)
        self._unread += 1
        self._arrive_later()

    def _arrive_later(self) -> None:
        delay = self._rng.random() if self._likely("slow") else 0.0001
        self._after("arrival", delay, self._clock.arrive, self._deliver)

    def _deliver(self) -> None:
        """What is on its way arrives: all of it, or a piece."""
        if self._paused or self.gone:
            return
        cut = self._rng.randrange(1, len(self._wire)) if len(self._wire) > 1 and self._likely("torn") else len(self._wire)
        self._receive(cut)
        self._hand_over()
        if self._wire:
            self._arrive_later()
        self._wake()  # if it waited for the manager to read

    def _receive(self, count: int | None = None) -> None:
        """Cut what arrives into frames, as an engine does."""
        if self._hung_up:
            self._wire.clear()
        data = bytes(self._wire[:count])
        del self._wire[: len(data)]
        try:
            self._frames.extend(cut(self._outgoing, data))
        except ValueError:
            self._hung_up = True
            for fate in self._fates.values():
                fate.garbled = True
            return self._after("killed", 0.0001, self.die, None, 9)
        self._unread = 0

    def _hand_over(self, drained: bool = False) -> None:
        while self._printed:  # what was written before something was said comes first
            self._events.on_output("stdout", self._printed.pop(0))
        while self._frames and (drained or not self._paused):
            frame = self._frames.popleft()
            if frame.kind in LAST_KINDS:
                self._unheard.discard(frame.tag)
            self._events.on_frame(frame)

    def _terminated(self) -> None:
        if self.dead or self._stubborn:
            return
        self.asleep = False
        if not self.ready:
            return self.die(None, 15)
        if self._next_step is not None:
            self._next_step.cancel()
        self._next_step = self._clock.after(self._rng.choice([0.0, 0.001, 0.1]), self.die, 143)

    def die(self, code: int | None = None, signal: int | None = None) -> None:
        """The process ends; the manager notices it later."""
        if self.dead or self.gone:
            return
        self.dead, self.asleep = True, False
        self._book.note(self, "dies", code, signal)
        self._book.died(self, self._job, self.ready)
        if self._next_step is not None:
            self._next_step.cancel()
        self._after("end", self._rng.choice([0.0, 0.0002, 0.01]), self._clock.arrive, self._ended, Exit(code, signal))

    def _ended(self, exit: Exit) -> None:
        """The manager notices: first all that was said, then the end."""
        if self.gone:
            return
        self.drain()
        tags = self.withdraw()
        self.gone = True
        for event in self._coming.values():
            event.cancel()
        for tag in tags:
            self._fates[tag].spared += 1
            self._book.check("poison", self._fates[tag].spared < 30, self._fates[tag], "is given out for ever")
        self.report(exit._replace(never_begun=tags))

    def report(self, exit: Exit) -> None:
        """The last that the manager hears of it."""
        self._engine.gone(self)
        events, self._events = self._events, _NoEvents()
        self._book.told_of_end = True
        events.on_exit(exit)
        self._book.told_of_end = False

    def vanish(self) -> None:
        """Its app has died: nothing of it is heard any more."""
        self.dead = self.gone = True
        self._events = _NoEvents()
        for event in (self._next_step, *self._coming.values()):
            if event is not None:
                event.cancel()

    def bury(self) -> None:
        """End one that ignores SIGKILL and that the manager has given up, if it has not ended."""
        self.undead = False
        self._events = _NoEvents()
        self.kill()

    def drop_ended(self) -> None:
        """Forget the jobs that it had, which have all ended."""
        if self.asleep and not self._inbox and not self._wire:
            self._fates.clear()
            self._requests.clear()
            self._asked.clear()

    # The process: one generator, which gives the seconds that it takes, or None when it waits for something

    def _schedule(self, delay: float) -> None:
        self._next_step = self._clock.after(delay, self._step)

    def _wake(self) -> None:
        if self.asleep and not self.dead:
            self.asleep = False
            self._schedule(0.0001)

    def _step(self) -> None:
        if self.dead:
            return
        try:
            delay = next(self._life)
        except StopIteration:
            return self.die(0)
        except Death as death:
            return self.die(death.code, death.signal)
        if delay is None:
            self.asleep = True
        else:
            self._schedule(delay)

    def _live(self) -> Iterator[float | None]:
        """What a worker does from its start to its end."""
        if self._likely("stillborn"):
            raise Death(*self._rng.choice([(1, None), (None, 9), (0, None)]))
        while True:
            while not self._inbox:
                yield None
            frame = self._inbox.popleft()
            if frame.kind == Kind.RUN:
                yield from self._run(frame)
            elif frame.kind == Kind.INIT:
                while self._likely("mute"):
                    yield 1000.0
                self.ready, self._size = True, frame.value()[3]
                self.say(Kind.READY, 0, (self.pid, self.host))
            elif frame.kind == Kind.UNLOAD:
                named = [name for name in self.loaded if frame.value()[0] in name]
                yield from self._unload(named)
                self._reply(frame.tag, bool(named), None)
            elif frame.kind == Kind.RELOAD:
                plugin_id, name, config, _ = frame.value()
                if config["version"] == 2 and self.loaded:  # one of its modules was edited
                    self._reply(frame.tag, None, None)
                    continue
                failed = yield from self._load((plugin_id, name), config)
                self._reply(frame.tag, not failed, failed or None)
            elif frame.kind == Kind.STOP:
                yield from self._unload(self.loaded)
                return

    def _reply(self, tag: int, done: bool | None, reason: str | None) -> None:
        self.say(Kind.REPLY, tag, (done, reason, list(self.loaded.items())))

    def _staying(self, plugin: tuple[str, str]) -> list[tuple[str, str]]:
        """What stays loaded beside a plugin."""
        return [name for name in self.loaded if name != plugin][-(self._size - 1) :] if self._size > 1 else []

    def _unload(self, names: Iterable[tuple[str, str]]) -> Iterator[float | None]:
        for name in list(names):
            del self.loaded[name]
            yield 0.001

    def _load(self, plugin: tuple[str, str], config: dict[str, Any]) -> Any:
        """Load a plugin; gives why it failed, or nothing."""
        staying = self._staying(plugin)
        yield from self._unload(name for name in list(self.loaded) if name not in staying)
        fault = self._rng.choice(["fails", "slow", "hangs", "dies"]) if self._likely("bad_loads") else ""
        if fault == "dies":
            raise Death(1)
        yield {"": 0.002, "fails": 0.001, "slow": self._rng.random() * 2, "hangs": 1000.0}[fault]
        if fault == "fails" or plugin[0] == "unknown":
            return "it cannot be loaded"
        self.loaded[plugin] = config
        self._book.loads(self, len(self.loaded) <= self._size)
        return ""

    def _take_claim(self, tag: int) -> bool:
        """Whether the manager still wants this job to be run here."""
        if not self.claims or self.claims[0] != tag:
            return False  # a claim of a later job stays where it is
        self.claims.popleft()
        return True

    def _run(self, frame: Frame) -> Iterator[float | None]:
        """Run a job, to one of its ends."""
        tag, fate, request = frame.tag, self._fates[frame.tag], self._requests[frame.tag]
        if fate.plan[:1] == (("poison",),):
            raise Death(None, 11)
        if not self._take_claim(tag):
            return
        plugin, config = (request[0], request[1]), request[2]
        self.begin(tag, fate)
        kind, failure = Kind.FAILED, ""
        value: Any = None
        if plugin in self.loaded:
            self.loaded[plugin] = self.loaded.pop(plugin)
        if self.loaded.get(plugin) != config:
            self.say(Kind.LOADING, tag, self._staying(plugin))
            if failure := (yield from self._load(plugin, config)):
                kind, value = Kind.FAILED, ("load", failure, "")
            else:
                self.say(Kind.LOADED, tag)
        if not failure:
            kind, value = yield from self._carry_out(tag, fate)
        if kind is Kind.RESULT:
            said = "result", value
        else:
            said = "cancelled" if kind is Kind.CANCELLED else value[0], None
        if fate.worker is self:
            self._book.says_end(fate, *said)
        self._job = None
        self.say(kind, tag, value)
        if self._likely("stray"):
            self.say(self._rng.choice([Kind.PROGRESS, Kind.COOPERATIVE, Kind.CANCELLED, Kind.LOADING]), tag, (0.5, "late"))

    def begin(self, tag: int, fate: Fate) -> None:
        """From here on it has begun a job."""
        self._job = fate
        self._unheard.add(tag)
        self._book.begins(fate, self)

    def _carry_out(self, tag: int, fate: Fate) -> Any:
        """Do the steps of a job's plan; gives the kind and the value of its last frame."""
        asked = False
        for what, *arguments in fate.plan:
            if what == "work":
                yield arguments[0]
            elif what == "chunks":
                for _ in range(arguments[0]):
                    if not self._ending:  # what it yields after that is not heard any more
                        fate.chunks.append(len(fate.chunks))
                    self.say(Kind.CHUNK, tag, [fate.chunks[-1] if not self._ending else "late"])
                    yield 0.0005
                    while self._paused and self._unread > self.HELD:
                        yield None
            elif what == "progress":
                self.say(Kind.PROGRESS, tag, (arguments[0], "on its way"))
            elif what == "print":
                self.say(Kind.OUTPUT, tag, ("stderr", "something\n"))
            elif what == "writes":
                self._printed.append("written by C code")
                self._arrive_later()
            elif what == "ask":
                if not asked:
                    asked = True
                    self.say(Kind.COOPERATIVE, tag)
                if any(f.kind == Kind.CANCEL and f.tag == tag for f in self._inbox):
                    return Kind.CANCELLED, None
            elif what == "garbage":
                self._wire += b"\xff" * 40
                self._arrive_later()
                yield 1000.0
            elif what == "hangs up":
                self._wire += encode(Kind.RESULT, tag, "torn")[:-3]
                self._arrive_later()
                self._after("hung up", 1.0, self.die, None, 9)  # by the engine, which waits so long for its end
                yield 1000.0
            elif what == "stop":
                return Kind.CANCELLED, None
            elif what == "fails":
                return Kind.FAILED, (arguments[0], "as planned", "")
            elif what == "dies":
                raise Death(*arguments)
            elif what == "hangs":
                while True:
                    yield None if self._rng.random() < 0.5 else 1000.0
        return Kind.RESULT, (fate.number, fate.begun)


class _NoEvents:
    """Takes the events of a worker, and does nothing with them."""

    def on_frame(self, frame: Frame) -> None: ...
    def on_output(self, stream: str, text: str) -> None: ...
    def on_waiting(self, reason: str, competes: Any = None) -> None: ...
    def on_exit(self, exit: Exit) -> None: ...


class SimulatedEngine:
    """Starts simulated workers."""

    def __init__(self, rng: Random, faults: Faults, book: Book, clock: Clock) -> None:
        self.rng, self.faults, self.book, self.clock = rng, faults, book, clock
        self.workers: list[SimulatedWorker] = []
        self.closed = False
        self._numbers = iter(range(1, 1_000_000_000))

    def placement(self, config: WorkerConfig, plugin_config: Mapping[str, Any]) -> Hashable:
        """Where a plugin's workers live is in its config."""
        return plugin_config.get("place")

    def start_worker(self, config: WorkerConfig, events: WorkerEvents, placement: Hashable = None) -> SimulatedWorker:
        """Start a worker at once, or let it wait for room."""
        self.clock.catch_up()
        self.book.check("closed engines start nothing", not self.closed)
        if self.faults.refuses and self.rng.random() < self.faults.refuses:
            self.book.failed_starts += 1
            self.book.refused_starts += 1
            self.book.note("no worker can be started")
            raise OSError("no more processes")
        worker = SimulatedWorker(self, events, placement, next(self._numbers))
        self.workers.append(worker)
        if not self.faults.room:
            worker.place_it(self._new_pid())
        else:
            self.clock.after(0.001, self.clock.arrive, self._find_room, worker)
        return worker

    def _new_pid(self) -> int:
        """A pid that no living worker has; those of the dead come again."""
        taken = {worker.pid for worker in self.workers}
        return next(pid for pid in range(self.rng.randrange(1, 4), 1_000_000) if pid not in taken)

    def _find_room(self, worker: SimulatedWorker) -> None:
        if worker.gone or worker.pid:
            return
        if not self.faults.room or sum(w.pid > 0 for w in self.workers) < self.faults.room:
            worker.place_it(self._new_pid())
            worker.started()
        else:
            worker.waits(self.rng.choice(["a place", "another place"]))
            self.clock.after(0.5, self.clock.arrive, self._find_room, worker)

    def gone(self, worker: SimulatedWorker) -> None:
        """A worker has ended."""
        self.workers.remove(worker)

    def drop_ended(self) -> None:
        """Let workers that have nothing to do forget the jobs that they had."""
        for worker in self.workers:
            worker.drop_ended()

    def kill_one(self, which: int, signal: int) -> None:
        """A worker is killed from outside."""
        self.clock.catch_up()
        if alive := [w for w in self.workers if w.pid and not w.dead]:
            alive[which % len(alive)].die(None, signal)

    def app_died(self) -> None:
        """The workers die with their app."""
        for worker in self.workers:
            worker.vanish()
        self.workers.clear()
        self.closed = True

    async def close(self) -> None:
        """All workers are gone by now, but those that cannot be killed."""
        self.closed = True
        for worker in list(self.workers):
            self.book.check("workers end before their engine", worker.undead, worker)
            worker.bury()
