"""What must hold at every moment of a simulation, and the book in which all that happens is written down."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from cjm_worker_protocols.core.events import Event
from cjm_worker_protocols.core.jobs import ENDS, Job, JobCancelled, JobError

from .clock import EPOCH

CATEGORIES = frozenset({"exception", "crash", "timeout", "load", "serialization", "start", "expired", "interrupted"})
MOVES = {  # From status to status
    "pending": {"running", "failed", "cancelled"},
    "running": {"pending", *ENDS},
    **{end: set() for end in ENDS},
}
FOLLOWS = {  # Which event of a job may come after which
    "": {"queued"},
    "queued": {"queued", "started", "failed", "cancelled"},
    "started": {"progress", "chunk", "queued", *ENDS},
    "progress": {"progress", "chunk", "queued", *ENDS},
    "chunk": {"progress", "chunk", "queued", *ENDS},
    **{end: set() for end in ENDS},
}


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, name: str, facts: str) -> None:
        super().__init__(f"{name}: {facts}")
        self.name = name


class Fate:
    """All that is known of one job."""

    def __init__(self, number: int, plan: Any, plugin: str, place: Any, priority: int, timeout: float | None, retries: int) -> None:
        self.number, self.plan, self.plugin, self.place = number, plan, plugin, place
        self.priority, self.timeout, self.retries = priority, timeout, retries
        self.job: NotedJob | None = None
        self.id: str | None = None  # The job's
        self.over = False  # Whether the store had its end when an app was gone
        self.taken = False  # Whether the present app has taken it over
        self.restartable = False
        self.caught = 0  # How often it was running when its app was gone
        self.accepted = False  # Whether the manager has taken it on
        self.asked_to_cancel = False
        self.owner: str | None = None
        self.queue: dict[int, Fate] | None = None  # Where it waits, if any worker may take it
        self.shown = False  # Whether it waits and shows a reason
        self.given: Any = None  # The worker that it was given to and that has not begun it
        self.worker: Any = None  # The worker that runs it now
        self.begun = 0  # How often a worker has begun it
        self.deaths = 0  # How many workers died while they ran it
        self.spared = 0  # How many died that had been given it and had not begun it
        self.garbled = False  # Whether a worker that ran it has sent something that is not a frame, and all before that may be lost
        self.said: tuple[str, Any] | None = None  # How its last run ended, as its worker said
        self.expires: float | None = None  # Seconds that it may wait
        self.accepted_at = 0.0
        self.chunks: list[Any] = []  # What it yielded, in all its runs
        self.started_at = 0.0

    def __repr__(self) -> str:
        return f"#{self.number}"


Group = dict[tuple[str | None, str], dict[int, Fate]]  # By owner and plugin, which decide whether a limit holds them; then by number


class Noted:
    """An attribute of a job whose changes the book hears of. It has no `__get__`, so that reading one costs no call."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __set__(self, job: NotedJob, value: Any) -> None:
        old = job.__dict__[self._name]
        job.__dict__[self._name] = value
        if value != old and job.book is not None:
            (job.book.moved if self._name == "status" else job.book.blocked)(job.fate, old, value)


class NotedJob(Job):
    """A job whose changes are noted as they happen: one that was made as a `Job`."""

    book: Book | None
    fate: Fate


for name in ("status", "waiting_for"):
    setattr(NotedJob, name, Noted(name))


def _say_nothing(*facts: Any) -> None: ...


class Book:
    """Writes down what happens, and checks it."""

    SHOWN = 50  # If so many jobs show why they wait, others behind them may wait for the same: a line shows it on its first 100

    def __init__(self, clock: Callable[[], float], max_workers: int, traced: bool = True) -> None:
        self._clock, self._max_workers = clock, max_workers
        if not traced:
            setattr(self, "note", _say_nothing)
        self.violations: list[Violation] = []
        self.fates: dict[int, Fate] = {}  # By number: those since the manager rested last
        self.recent = deque[Fate](maxlen=50)  # The newest of them
        self.made = 0  # How many there were
        self.counts: Counter[str] = Counter()  # What happened how often
        self.running: dict[int, Fate] = {}
        self.pending: dict[int, Fate] = {}
        self.busy: dict[int, Fate] = {}  # Those that run or were given to a worker
        self.ready: dict[Any, dict[int, Group]] = {}  # By placement and priority: those that any worker may take
        self.shown: Counter[tuple[Any, ...]] = Counter()  # How many show why they wait, by all that decides it
        self._changed = False  # Whether other jobs are running than when the limits were checked last
        self.given_up = False  # Whether the simulation was broken off
        self.told_of_end = False  # Whether the manager is told of a worker's end just now
        self.failed_starts = self.refused_starts = 0
        self.limits: tuple[float | None, ...] = ()  # The timeouts of the config
        self._resting: dict[tuple[int, int], float] = {}  # Since when a job waits while a worker, by pid, has nothing to do
        self.most_per_owner: int | None = None
        self.concurrency: dict[str, int] = {}  # How many jobs of a plugin may run at the same time
        self.admission = self.closing = self.never_replaced = False
        self.store: Any = None  # The job store, if there is one: it checks what is written when
        self.lives = 1  # How many apps there were, one after the other
        self.left: dict[str, Fate] = {}  # By id: jobs that an app has left in the store, and that the next one has not taken over
        self.line: list[Fate] = []  # Jobs that were taken over and have not come up
        self.trace: list[str] = []

    @property
    def digest(self) -> str:
        """The same for every run of the same seed."""
        return hashlib.blake2b("".join(self.trace).encode(), digest_size=12).hexdigest()

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self._clock()

    def note(self, *facts: Any) -> None:
        """Add a line to the trace, if there is to be one."""
        self.trace.append(f"{self._clock():.6f} {' '.join(map(str, facts))}")

    def check(self, name: str, holds: Any, *facts: Any) -> None:
        """Note a violation unless this holds. It is not raised: the managers survive what their callbacks raise."""
        if holds or self.violations or self.given_up:  # what follows from the first one is of no interest
            return
        self.note("VIOLATION", name, *facts)
        self.violations.append(Violation(name, " ".join(map(str, facts))))

    # Jobs

    def expect(self, plan: Any, plugin: str, place: Any, priority: int, timeout: float | None, retries: int) -> Fate:
        """A job is about to be made."""
        fate = self.fates[self.made] = Fate(self.made, plan, plugin, place, priority, timeout, retries)
        self.recent.append(fate)
        self.made += 1
        return fate

    def new_job(self, fate: Fate, job: Any) -> None:
        """A job was made; it is not accepted yet."""
        vars(job).update(status=job.status, waiting_for=job.waiting_for)  # where a `Noted` keeps them
        job.__class__ = NotedJob
        fate.job, fate.id, job.fate, job.book = job, job.id, fate, self

    def accept(self, fate: Fate) -> None:
        """The manager has taken a job on."""
        if fate.accepted:
            return
        fate.accepted, fate.accepted_at = True, self._clock()
        self.counts["jobs"] += 1
        self.note("accepted", fate)
        if fate.job is not None and fate.job.status == "pending":
            self._wait(fate)

    def _wait(self, fate: Fate) -> None:
        self.pending[fate.number] = fate
        self._update_ready(fate)

    def _update_ready(self, fate: Fate) -> None:
        """Whether a job can be taken by any worker has changed."""
        job, number = fate.job, fate.number
        waits = fate.given is None and fate.accepted and job is not None and job.status == "pending"
        reason = job.waiting_for if waits and job is not None else ""
        if waits and not reason:
            if fate.queue is None:
                groups = self.ready.setdefault(fate.place, {}).setdefault(fate.priority, {})
                fate.queue = groups.setdefault((fate.owner, fate.plugin), {})
                fate.queue[number] = fate
        elif fate.queue is not None:
            del fate.queue[number]
            fate.queue = None
        if bool(reason) != fate.shown:
            fate.shown = not fate.shown
            self.shown[fate.place, fate.priority, fate.owner, fate.plugin] += 1 if reason else -1
        if number in self.running or fate.given is not None and number in self.pending:
            self.busy[number] = fate
        else:
            self.busy.pop(number, None)

    def blocked(self, fate: Fate, old: str, reason: str) -> None:
        """What a job waits for has changed."""
        self.note(fate, "waits for", reason or "nothing")
        self._update_ready(fate)

    def moved(self, fate: Fate, old: str, new: str) -> None:
        """A job's status has changed."""
        self.note(fate, old, "->", new)
        if new not in MOVES[old]:
            self.check("legal moves", False, fate, old, new)
        if not fate.accepted:
            self.accept(fate)
        self._changed = True
        self.pending.pop(fate.number, None)
        self.running.pop(fate.number, None)
        if new == "running":
            self.running[fate.number] = fate
            fate.started_at, fate.given = self._clock(), None
        elif new == "pending":
            fate.given = None
            self._wait(fate)
        else:
            self._ended(fate, new)
        self._update_ready(fate)

    def _ended(self, fate: Fate, status: str) -> None:
        """A job has reached its end: what is said of it can be read, and has its cause."""
        job, error = fate.job, fate.job.error if fate.job else None
        assert job is not None
        self.counts[status] += 1
        if self.store is not None:
            self.store.shown(job)
        self.check("end is dated", job.completed_at is not None, fate)
        if status == "completed":
            self.check("result first", error is None and job.result is not None and job.progress == 1.0, fate, error)
            self.check("its own result", fate.said == ("result", job.result), fate, fate.said, job.result)
        elif status == "cancelled":
            self.check("error first", isinstance(error, JobCancelled), fate, error)
            self.check("cancelled for a reason", fate.asked_to_cancel or self.closing or fate.said == ("cancelled", None), fate)
        else:
            self.check("error first", isinstance(error, JobError) and error.category in CATEGORIES, fate, error)
            if isinstance(error, JobError):
                self.note(fate, error.category)
                self.counts[error.category] += 1
                self._explained(fate, error)

    def _explained(self, fate: Fate, error: JobError) -> None:
        """A failure has its cause in what happened to this job, and to no other."""
        kind, said = error.category, fate.said and fate.said[0]
        if kind in ("exception", "load", "serialization"):
            unknown = kind == "load" and (self.admission or fate.taken)
            self.check("failed for a reason", said == kind or unknown, fate, error, fate.said)
        elif kind == "interrupted":
            caught = (self.closing or fate.caught) and not fate.restartable
            self.check("failed for a reason", caught and self.store is not None, fate, error)
        elif kind == "crash":
            self.check("failed for a reason", fate.deaths or fate.spared > 1 or fate.garbled, fate, error)
        elif kind == "start":
            self.check("others' crashes", self.failed_starts or self.never_replaced, fate, error)
        elif kind == "expired":
            waited = fate.expires is not None and self._clock() - fate.accepted_at >= fate.expires - 1e-6
            self.check("expired while it waited", waited and not fate.begun, fate, fate.expires, fate.begun)
        elif kind == "timeout":
            limits = [limit for limit in (fate.timeout, *self.limits) if limit is not None]
            self.check("timeout has passed", limits and self._clock() - fate.started_at >= min(limits) - 1e-6, fate, limits)

    # From one app to the next

    def app_gone(self) -> None:
        """An app has died or was shut down: of its jobs, only what the store has is left."""
        self.lives += 1
        self.counts["apps gone"] += 1
        self.closing = False
        self.left.clear()
        for kept in (self.running, self.pending, self.busy, self.ready, self.shown, self.line):
            kept.clear()
        for fate in self.fates.values():
            if fate.id is not None and not fate.over:
                self._leave(fate, fate.id)

    def _leave(self, fate: Fate, job_id: str) -> None:
        """An accepted job is in the store, with the end that was shown, or without one."""
        job, stored = fate.job, self.store.jobs.get(job_id)
        fate.job = fate.given = fate.worker = fate.said = fate.queue = None
        fate.shown = False
        fate.taken = False
        self.check("no accepted job is lost", stored is not None or not fate.accepted, fate)
        if job is not None:
            job.book = None
            status = stored.status if stored is not None and stored.ended is not None else None
            self.check("an end that was shown is kept", not job.done or job.unsaved or status == job.status, fate, job.status, status)
        if stored is None or stored.ended is not None:
            fate.over = True
            return
        self.left[job_id] = fate
        fate.caught += stored.status == "running"
        kept = self.store.kept.get(job_id)
        del fate.chunks[max(kept) + 1 if kept else 0 :]

    def take_over(self, job: Any) -> None:
        """The present app has found a job in the store."""
        fate = self.left.pop(job.id, None)
        self.check("jobs are taken over once", fate is not None, job.id)
        if fate is None:
            return
        self.new_job(fate, job)
        self.note("takes over", fate)
        self.counts["taken over"] += 1
        fate.taken = True
        self.line.append(fate)
        self._wait(fate) if fate.accepted else self.accept(fate)
        fate.accepted_at = self.store.jobs[job.id].created - EPOCH

    def comes_up(self, job_id: str) -> None:
        """A job that was taken over is about to be sent: those of its plugin and owner that stood before it are not waiting."""
        fate = next((fate for fate in self.line if fate.id == job_id), None)
        if fate is None:
            return
        self.line.remove(fate)
        self.note("comes up", fate)

        def rank(fate: Fate) -> tuple[int, int]:
            return -fate.priority, self.store.jobs[fate.id].place

        mine = [other for other in self.line if (other.plugin, other.owner) == (fate.plugin, fate.owner)]
        passed = [other for other in mine if other.job is not None and other.job.position is not None and rank(other) < rank(fate)]
        self.check("the old order", not passed, fate, "before", *passed)

    # Workers

    def given(self, fate: Fate, worker: Any, again: bool) -> None:
        """A worker was given a job, at once or ahead: none of a higher priority could have been.

        One that is given `again` is for its manager what the worker does now: it was taken back only because the next one was. Its
        predecessor may have failed since and wait for its next attempt, which is behind what its worker goes on with by itself."""
        if not fate.accepted:
            self.accept(fate)
        fate.given = worker
        self._update_ready(fate)
        self.note(worker, "is given", fate)
        if self.store is not None and fate.job is not None:
            self.store.sent(fate.job.id)
            return  # it was chosen before it was marked, and others may have come since
        if self.admission or again:
            return
        for priority, groups in self.ready.get(fate.place, {}).items():
            if priority > fate.priority:
                name = "priority" + (" as a worker ends" if self.told_of_end else "")
                for waiting in groups.values():
                    first = next(iter(waiting.values()), None)
                    fine = first is None or self._held(first) or self.shown[first.place, priority, first.owner, first.plugin] >= self.SHOWN
                    self.check(name, fine, fate, fate.priority, "before", first, priority)

    def _together(self, owner: str | None, plugin: str | None) -> list[Fate]:
        """The jobs of an owner, or of a plugin, that run or were given to a worker: one for each worker."""
        found = {}
        for fate in self.busy.values():
            if (owner is None or fate.owner == owner) and (plugin is None or fate.plugin == plugin):
                found[fate.worker or fate.given or fate] = fate
        return list(found.values())

    def _held(self, fate: Fate) -> bool:
        """Whether as many run as may."""
        most, limit = self.most_per_owner, self.concurrency.get(fate.plugin)
        owner_full = most is not None and fate.owner is not None and len(self._together(fate.owner, None)) >= most
        return owner_full or limit is not None and len(self._together(None, fate.plugin)) >= limit

    def waiting_of(self, owner: str) -> list[Fate]:
        """The jobs of an owner that wait."""
        return [fate for fate in self.pending.values() if fate.owner == owner]

    def withdrawn(self, fate: Fate) -> None:
        """A job was taken back from a worker that had not begun it."""
        fate.given = None
        self._update_ready(fate)

    def begins(self, fate: Fate, worker: Any) -> None:
        """A worker begins a job."""
        self.note(worker, "begins", fate)
        self.check("one worker a job", fate.worker is None, fate, "runs on", fate.worker, "and", worker)
        self.check("nothing after the end", fate.job is not None and not fate.job.done, fate, "is begun after its end")
        fate.begun += 1
        fate.worker, fate.said = worker, None
        name = "no run too many" + (" after garbage" if fate.garbled else "")
        most = 1 + fate.retries + (self.lives - 1 if fate.restartable else 0)
        self.check(name, fate.begun <= most, fate, "is run for the", fate.begun, "time")

    def says_end(self, fate: Fate, kind: str, value: Any = None) -> None:
        """A worker has said how a job ended."""
        self.note(fate.worker, "says", kind, "of", fate)
        fate.worker, fate.said = None, (kind, value)

    def loads(self, worker: Any, fits: bool) -> None:
        """A worker has loaded a plugin."""
        self.counts["loads"] += 1
        self.check("no plugin too many", fits, worker, *worker.loaded)

    def died(self, worker: Any, fate: Fate | None, ready: bool) -> None:
        """A worker is gone, though its manager need not know yet."""
        self.counts["deaths"] += 1
        if not ready:
            self.failed_starts += 1
        if fate is not None and fate.worker is worker:
            fate.worker = None
            fate.deaths += 1

    # Views and ends

    def turn(self) -> None:
        """The limits hold after every turn of the loop. Raises the first violation of anything, so that the simulation ends."""
        if self.violations:
            raise self.violations[0]
        if self._changed and self.store is None:  # with one, a job runs until its end is written, and its worker goes on
            running, self._changed = self.running.values(), False
            self.check("limit of workers", len(running) <= self._max_workers, *running)
            if self.most_per_owner is not None:
                owners = Counter(fate.owner for fate in running if fate.owner is not None)
                self.check("limit of an owner", all(count <= self.most_per_owner for count in owners.values()), owners, *running)
            for plugin, limit in self.concurrency.items():
                self.check("limit of a plugin", sum(fate.plugin == plugin for fate in running) <= limit, plugin, *running)

    def look(self, manager: Any, workers: list[Any]) -> None:
        """What the manager shows of its jobs and workers fits together, and its limits hold."""
        busy = [(view.pid, view.job_id) for view in manager.workers if view.job_id is not None]
        jobs = {fate.job.id: fate.job for fate in self.running.values() if fate.job is not None}
        pids = {job_id: pid for pid, job_id in busy}
        self.check("one job a worker", len(pids) == len(busy) == len(set(pids.values())), busy)
        if self.store is None:
            self.check("workers and jobs agree", pids == {i: job.worker_pid for i, job in jobs.items()}, busy, self.running)
        if len(self.pending) > (most := manager.worker_config.max_pending):
            new = [fate for fate in self.pending.values() if not fate.begun and not fate.spared and not fate.taken]
            if self.store is not None:  # one whose end, or whose start, is being written waits no longer
                new = [fate for fate in new if fate.job is not None and fate.job.position is not None]
            self.check("limit of pending jobs", len(new) <= most, *new)
        if not self.admission and self.store is None:
            self._nobody_rests({view.pid for view in manager.workers if view.status == "idle"}, workers)

    def _nobody_rests(self, idle: set[int], workers: list[Any]) -> None:
        """No worker has nothing to do for long while a job waits that it could run."""
        now, before, self._resting = self._clock(), self._resting, {}
        places = sum(any(any(groups.values()) for groups in priorities.values()) for priorities in self.ready.values())
        for worker in workers:
            if worker.pid in idle and worker.asleep:
                groups = (group for groups in self.ready.get(worker.place, {}).values() for group in groups.values())
                firsts = [next(iter(group.values())) for group in groups if group]  # a limit holds the others of its group as well
                free = [fate for fate in firsts if not self._held(fate)]
                for fate in sorted(free, key=attrgetter("number"))[:1]:
                    since = self._resting[worker.pid, fate.number] = before.get((worker.pid, fate.number), now)
                    name = "no worker rests while a job waits" + (" behind one of another place" if places > 1 else "")
                    self.check(name, now - since < 7.5, worker, fate, since)  # 5 s for a start, and 2 s in which the app blocks its loop

    def quiet(self) -> None:
        """Every accepted job has ended."""
        for fate in self.fates.values():
            if fate.accepted and fate.job is not None:
                name = "one end" + (" after a refused start" if self.refused_starts else "")
                left = self.store is not None and self.closing and fate.job.status == "pending"
                self.check(name, fate.job.done or left, fate, fate.job.status, "has no end")

    def events(self, events: list[Event], complete: bool) -> None:
        """The events of each job are in order, and nothing comes after its end."""
        last: dict[str, str] = {}
        for kind, data in events:
            if kind.startswith("job:"):
                job_id, kind = data["job_id"], kind[4:]
                before = last.get(job_id, "")
                self.check("order of events", kind in FOLLOWS[before] or not complete and before not in ENDS, job_id, before, kind)
                last[job_id] = kind
        for fate in self.fates.values():
            if fate.job is not None:
                end = last.get(fate.job.id, "")
                self.check("events of refused jobs", fate.accepted or not end, fate, end)
                heard = not complete or not fate.accepted or not fate.job.done or end == fate.job.status
                self.check("end is reported", heard, fate, end, fate.job.status)

    def forget(self) -> None:
        """Hold no job and no worker any longer."""
        self.drop_ended()
        for kept in (self.running, self.pending, self.busy, self.ready, self.shown, self.left, self.line):
            kept.clear()

    def drop_ended(self) -> None:
        """Hold none of the jobs up to now: all have ended, and were checked."""
        self.fates.clear()
        self.recent.clear()

    def nothing_left(self, loop: asyncio.AbstractEventLoop, workers: list[Any], timer: str) -> None:
        """Nothing goes on after the shutdown."""
        self.check("no worker is left", not workers, *workers)
        tasks = asyncio.all_tasks(loop)
        self.check("no task is left", not tasks, *tasks)
        self.check("no timer is left", not timer, timer)
