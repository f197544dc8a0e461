"""Runs a scenario, and shrinks one that fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from cjm_worker_protocols.core import jobs

from .clock import Stuck, VirtualLoop
from .engine import Faults
from .executor import Habits, simulated_executors
from .integrations import Moods
from .invariants import Book, Violation
from .play import Play
from .scenario import Scenario


@dataclass(frozen=True)
class Outcome:
    """What came of a simulation."""

    scenario: Scenario
    violations: list[Violation]
    counts: dict[str, int]
    digest: str
    tail: list[str]
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
def _listening(book: Book, loop: VirtualLoop) -> Iterator[None]:
    """Hear of unexpected exceptions, and keep everything else off the log."""
    logger, complaints = logging.getLogger("cjm_worker_protocols"), _Complaints(book)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(complaints)
    logger.setLevel(logging.ERROR)
    logger.propagate = False

    def unhandled(loop: asyncio.AbstractEventLoop, facts: dict[str, Any]) -> None:
        error = repr(facts.get("exception"))
        name = "broadcasts go on" if "empty deque" in error else "no unexpected exception"
        book.check(name, False, facts.get("message"), error)

    loop.set_exception_handler(unhandled)
    try:
        yield
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


def run(scenario: Scenario, verbose: bool = False) -> Outcome:
    """Simulate a scenario."""
    loop = VirtualLoop()
    gc.disable()  # it would call finalizers at moments of its own
    try:
        with simulated_executors(Random(scenario.seed + 3), scenario.habits), _seeded_ids(scenario.seed):
            return _run(scenario, loop, verbose)
    finally:
        gc.enable()
        loop.close()
        asyncio.set_event_loop(None)


def _run(scenario: Scenario, loop: VirtualLoop, verbose: bool) -> Outcome:
    asyncio.set_event_loop(loop)
    play = Play(scenario, loop, verbose)
    book, engine, manager = play.book, play.engine, weakref.ref(play.manager)
    with _listening(book, loop):
        try:
            loop.run_until_complete(play.play())
        except Violation:
            pass
        except Stuck as e:
            waiting = [fate for fate in book.fates if fate.job is not None and not fate.job.done]
            book.check("shutdown returns" if book.closing else "nothing waits for ever", False, e, *waiting)
            book.given_up = True
        loop.clock.on_turn = lambda: None
        if not book.given_up and not book.violations:
            book.nothing_left(loop, engine.workers, loop.rest())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.rest()
        del play
        book.forget()
        gc.collect()
        book.check("the manager is freed", manager() is None)
    return Outcome(scenario, book.violations, dict(book.counts), book.digest, list(book.tail), loop.time())


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
