"""Runs a scenario, and shrinks one that fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from cjm_worker_protocols.core import jobs
from cjm_worker_protocols.extensions.store import StoredJob
from cjm_worker_protocols.managers import recovery
from cjm_worker_protocols.managers.marks import Marker
from cjm_worker_protocols.managers.proxy import WorkerProxy
from cjm_worker_protocols.managers.reports import Ticket
from cjm_worker_protocols.managers.stored import job_of

from .clock import EPOCH, Stuck, VirtualLoop
from .engine import Faults
from .executor import Habits, simulated_executors
from .integrations import Moods
from .invariants import Book, Violation
from .play import AppDied, Play
from .scenario import Scenario


@dataclass(frozen=True)
class Outcome:
    """What came of a simulation."""

    scenario: Scenario
    violations: list[Violation]
    counts: dict[str, int]
    digest: str  # Of its trace
    trace: list[str]
    seconds: float  # Simulated ones


class _Complaints(logging.Handler):
    """Takes what the managers log as an exception that they did not expect."""

    def __init__(self, book: Book) -> None:
        super().__init__(logging.ERROR)
        self._book = book

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._book.check("no unexpected exception", False, record.getMessage(), repr(record.exc_info[1]))


@contextmanager
def _listening(book: Book) -> Iterator[Any]:
    """Hear of unexpected exceptions, and keep everything else off the log; gives the handler for loops."""
    logger, complaints = logging.getLogger("cjm_worker_protocols"), _Complaints(book)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(complaints)
    logger.setLevel(logging.ERROR)
    logger.propagate = False

    def unhandled(loop: asyncio.AbstractEventLoop, facts: dict[str, Any]) -> None:
        error = repr(facts.get("exception"))
        name = "broadcasts go on" if "empty deque" in error else "no unexpected exception"
        book.check(name, False, facts.get("message"), error)

    try:
        yield unhandled
    finally:
        logger.removeHandler(complaints)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _seeded_ids(seed: int) -> Iterator[None]:
    """Have the ids of jobs depend on the seed."""
    real = getattr(jobs, "id_bytes", None)
    if real is not None:
        setattr(jobs, "id_bytes", Random(seed).randbytes)
    try:
        yield
    finally:
        if real is not None:
            setattr(jobs, "id_bytes", real)


@contextmanager
def _noted_jobs(book: Book) -> Iterator[None]:
    """Have the book see the jobs that are taken over, and these wait in simulated time."""
    real_mark = Marker.mark

    def noted_job_of(stored: StoredJob) -> jobs.Job:
        job = job_of(stored)
        book.take_over(job)
        return job

    def mark(marker: Marker, worker: WorkerProxy, ticket: Ticket) -> None:
        book.comes_up(ticket.job.id)
        real_mark(marker, worker, ticket)

    clock = SimpleNamespace(time=lambda: EPOCH + book.now)
    with patch.object(recovery, "job_of", noted_job_of), patch.object(recovery, "time", clock), patch.object(Marker, "mark", mark):
        yield


def run(scenario: Scenario, traced: bool = True) -> Outcome:
    """Simulate a scenario; without a trace it is faster."""
    loops = [VirtualLoop()]  # One for each app
    gc.disable()  # it would call finalizers at moments of its own
    try:
        with simulated_executors(Random(scenario.seed + 3), scenario.habits), _seeded_ids(scenario.seed):
            return _run(scenario, loops, traced)
    finally:
        gc.enable()
        for loop in loops:
            loop.close()
        asyncio.set_event_loop(None)


def _run(scenario: Scenario, loops: list[VirtualLoop], traced: bool) -> Outcome:
    asyncio.set_event_loop(loops[0])
    play, clock = Play(scenario, loops[0], traced), loops[0].clock
    book = play.book
    with _listening(book) as on_exception, _noted_jobs(book):
        while _live(play, on_exception):
            loops.append(play.loop)
        counts, digest, seconds = dict(book.counts), book.digest, clock.now
        manager, given_up = weakref.ref(play.manager), book.given_up
        clock.on_turn, book.given_up = (lambda: None), True
        for loop in loops:  # nothing counts of what apps have left that have died
            _bury(loop)
        clock.end()
        del play
        book.forget()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for _ in loops[:2]:  # what is left of apps that have died is freed first
                gc.collect()
        book.given_up = given_up
        book.check("the manager is freed", manager() is None)
    return Outcome(scenario, book.violations, counts, digest, book.trace, seconds)


def _live(play: Play, on_exception: Any) -> bool:
    """Let an app live; says whether another one comes after it."""
    book, loop = play.book, play.loop
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(on_exception)
    loop.clock.on_turn = book.turn
    try:
        loop.run_until_complete(play.play())
    except Violation:
        return False
    except AppDied:
        return play.next_app(died=True)
    except Stuck as e:
        waiting = [fate for fate in book.fates.values() if fate.job is not None and not fate.job.done]
        book.check("shutdown returns" if book.closing else "nothing waits for ever", False, e, *waiting)
        book.given_up = True
        return False
    loop.clock.on_turn = lambda: None
    book.nothing_left(loop, play.engine.workers, loop.rest())
    return play.next_app(died=False)


def _bury(loop: VirtualLoop) -> None:
    """Let what is left in a loop end, with the tasks that this begins."""
    loop.set_exception_handler(lambda loop, facts: None)
    for _ in range(9):
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with suppress(AppDied):  # which all hear that waited for the client in which it was raised
            loop.rest()
    loop.close()


# Shrinking


def shrink(outcome: Outcome, attempts: int = 400, seconds: float = 30.0) -> Outcome:
    """Within some seconds: a smaller scenario in which the same invariant is broken: fewer operations, and fewer faults."""
    best, name, size = outcome, outcome.violations[0].name, max(1, len(outcome.scenario.ops) // 2)
    deadline = time.monotonic() + seconds

    def smaller(scenario: Scenario) -> bool:
        nonlocal best, attempts
        attempts -= 1
        tried = run(scenario) if attempts > 0 and time.monotonic() < deadline else outcome
        if tried is outcome or not any(v.name == name for v in tried.violations):
            return False
        best = tried
        return True

    for simpler in _simpler(outcome.scenario):
        smaller(replace(best.scenario, **simpler))
    while size and attempts > 0:
        start = 0
        while start < len(best.scenario.ops) and attempts > 0:
            ops = best.scenario.ops
            if not smaller(replace(best.scenario, ops=ops[:start] + ops[start + size :])):
                start += size
        size //= 2
    return best


def _simpler(scenario: Scenario) -> Iterator[dict[str, Any]]:
    """Scenarios without some of what makes this one hard."""
    yield {"faults": Faults()}
    yield {"moods": Moods(), "habits": Habits()}
    yield {"broadcaster": False}
    yield {"resources": None}
    yield {"registry": False}
    yield {"store": False}
    for name in vars(scenario.faults):
        if getattr(scenario.faults, name):
            without: dict[str, Any] = {name: 0}
            yield {"faults": replace(scenario.faults, **without)}
